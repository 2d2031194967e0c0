"""All entries of the configs: what each may be, and what it is for.

  config.ENTRY=VALUE; it must be ALLOWED (PURPOSE).

`validation` compares configs with it, `--help` prints it, and docs/configs.md
shows it. The defaults are in configs/digits.py and configs/smoothness.py. Names
are looked up in `registry`, whose factories may want less than what is allowed
here.
"""

from moniqua_jax.training.allowed import (
  Entry,
  arguments,
  count,
  either,
  flag,
  many,
  number,
  one_of,
  optional,
  pairs,
  positive,
  rows,
  text,
)

MOST = 4096  # workers, or devices of one; graphs are n x n matrices
SEED = count(0, 2**32 - 1)
SHARE = number(above=0, most=1)
EPOCHS = number(above=0, most=1e12)
FACTOR = number(least=0, below=1)
DELAYS = either(count(0, 1000), many(count(0, 1000), least=1))
ORDERS = one_of('adapt_with_combine', 'adapt_then_combine')
RUNNERS = one_of('simulated', 'sharded', 'pmapped')


def _of_quantizer(spec, what):
  return arguments(
    spec,
    what,
    ('bits', count(1, 8), 'bits of a code'),
    ('theta', positive(), 'of moniqua: what neighbours stay closer than'),
    ('rounding', text(), 'dithered, nearest or stochastic'),
    ('digest', flag(), 'of moniqua: receivers see that theta was too small'),
    ('bucket_size', count(1, 2**24), 'values that share a norm'),
    ('scale', text(), 'of sign and eden: how magnitudes are restored'),
    ('start', positive(), 'of a theta that finds itself: the first'),
    ('safety', number(above=1, most=1e6), 'of auto_theta: over the largest'),
    ('chance', number(above=0, below=1), 'of fitted_theta: of a wrap'),
    ('shrink', number(above=0, below=1), 'how fast theta falls in a step'),
    ('limit', positive(), 'of a theta that finds itself: the most'),
    ('norm', one_of('l2', 'linf'), 'of a bucket'),
    ('zero_level', flag(), 'of nuqsgd: whether 0 is a level'),
    ('levels', many(number()), 'of leveled, ascending, up to 1'),
    ('clip', positive(), 'of terngrad, in deviations'),
    ('fraction', SHARE, 'of top_k and random_k: what is sent'),
    ('chunk', count(1, 2**24), 'of chunked_top_k: values'),
    ('keep', count(1, 2**24), 'of chunked_top_k: of a chunk, what is sent'),
    ('value_bits', count(1, 4), 'of chunked_top_k: of what is sent'),
    ('components', count(1, 1000), 'of alq, amq: distributions in the mixture'),
    ('first', many(count(0), ascending=True), 'of alq, amq: first updates'),
    ('every', count(), 'of alq, amq: steps between later updates'),
    ('norm_bits', one_of(8, 16, 32), 'of block: bits of a norm'),
  )


TRAINING = (
  *rows(
    '',
    ('variant', text(), 'of a larger experiment: named in all output'),
    ('seed', SEED, 'of everything that is random'),
    ('workers', count(1, MOST), 'each with parameters and data'),
    ('runner', RUNNERS, 'all workers on one device, or one worker on each'),
    ('pod.data', count(1, MOST), 'devices of a worker, with all parameters'),
    ('pod.fsdp', count(1, MOST), 'devices of a worker with parts of them'),
    ('budget.bits', optional(number(above=0)), 'to send for each parameter'),
    ('budget.link', optional(text()), 'for which the plan chooses: 10Mbit'),
    ('budget.latency', optional(text()), 'of a message on that link: 20ms'),
    ('budget.compute', optional(text()), 'of a gradient: 350ms'),
  ),
  *arguments(
    'model',
    'the net',
    ('hidden', many(count(1, 2**20)), 'of mlp: widths'),
    ('norm', one_of('batch', 'group'), 'normalization between layers'),
    ('width', count(2, 2**16), 'of transformer: of what a place has'),
    ('layers', count(1, 1000), 'of transformer: blocks'),
    ('heads', count(1, 1024), 'of transformer: of attention'),
    ('hidden_width', count(1, 2**20), 'of transformer: of hidden layers'),
    ('mlp', one_of('swiglu', 'gelu'), 'of transformer: the hidden layers'),
  ),
  *arguments(
    'data',
    'what is learned',
    ('data_dir', text(), 'of cifar10, imagenet2012: a TFDS directory'),
    ('path', text(), 'of folder, npz and text'),
    ('window', count(1, 2**20), 'of text: symbols that the model sees'),
    ('symbols', one_of('bytes', 'characters'), 'of text'),
    ('image_size', count(1, 2**14), 'to which images are scaled'),
    ('augment', one_of('none', 'crop_and_flip'), 'of images in training'),
    ('num_train', count(), 'of synthetic: images'),
    ('num_test', count(), 'of synthetic: images'),
    ('shape', many(count(1, 2**14), 3, 3), 'of synthetic: of an image'),
    ('num_classes', count(2), 'of synthetic'),
    ('seed', SEED, 'of synthetic'),
  ),
  *arguments(
    'partition',
    'who gets which images',
    ('alpha', positive(), 'of dirichlet: small for unlike workers'),
  ),
  *rows(
    '',
    ('batch_size', count(), 'images of a worker in a step'),
    ('epochs', number(above=0, most=1e6), 'how long it trains'),
  ),
  Entry('learning_rate.name', text('a name'), 'how the rate goes down'),
  Entry('learning_rate.peak', number(above=0, most=1e38), 'the largest rate'),
  *rows(
    'learning_rate.',
    ('warmup_epochs', number(least=0), 'epochs until the peak'),
    ('milestones', many(number(least=0), ascending=True), 'of step, in epochs'),
    ('factor', positive(), 'of step: of the rate at a milestone'),
    wrap=optional,
  ),
  *arguments(
    'optimizer',
    'what a worker does by itself',
    ('b1', FACTOR, 'of adamw, dadam, lion, muon'),
    ('b2', FACTOR, 'of adamw, dadam, lion, muon'),
    ('beta', FACTOR, 'of muon: of its momentum'),
    ('eps', number(least=0), 'of adamw and dadam'),
    ('every', count(), 'of dadam: steps between messages of moments'),
  ),
  Entry('momentum', FACTOR, 'of a worker by itself'),
  *arguments(
    'momentum_kind',
    "local: of a worker's gradients; quasi_global: of what it moves",
    ('mu', FACTOR, 'of quasi_global: of the direction'),
    ('warmup', count(0), 'of quasi_global: steps'),
  ),
  *rows(
    '',
    ('nesterov', flag(), 'form of the momentum'),
    ('clip', optional(positive()), 'of gradients: their largest norm'),
    ('weight_decay', number(least=0), 'added to gradients'),
    ('local_momentum', FACTOR, 'of gradients before their mean'),
  ),
  *arguments(
    'reduce',
    'of gradients to their mean, or none',
    ('strategy', text(), 'exact, all_gather, of_senders or scatter_reduce'),
    ('decay', SHARE, 'of error_feedback: of the memory'),
    ('rank', count(1, 1000), 'of power_sgd: columns of a factor'),
    ('alpha', SHARE, 'of diana, adiana: step of the memory'),
    ('eta', positive(), 'of adiana: step'),
    ('theta1', number(least=0, most=1), 'of adiana'),
    ('theta2', number(least=0, most=1), 'of adiana: at most 1 - theta1'),
    ('gamma', positive(), 'of adiana'),
    ('beta', number(least=0, most=1), 'of adiana'),
    ('p', SHARE, 'of adiana: chance of a new anchor'),
  ),
  *rows(
    'outer.',
    ('learning_rate', number(above=0, most=2), 'along what workers moved'),
    ('momentum', FACTOR, 'of that step'),
    ('nesterov', flag(), 'form of that momentum'),
    ('delay', count(0), 'steps that go on until what was sent is there'),
  ),
  *arguments(
    'gossip',
    'the algorithm between neighbours, or none',
    ('gamma', SHARE, 'of choco: consensus step'),
    ('eta', SHARE, 'of deepsqueeze: consensus step'),
    ('epsilon', SHARE, 'of qdgd: of the whole step'),
    ('delays', DELAYS, 'of adpsgd: steps that an update is late'),
  ),
  *rows(
    '',
    ('local_steps', count(), 'messages in one step of so many'),
    (
      'local_steps_from',
      pairs(),
      'later: ((200, 4),), one of 4 from step 200 on',
    ),
    ('rounds', count(most=1000), 'of gossip, in a step that has some'),
    (
      'rounds_from',
      pairs(most=1000),
      'later: ((200, 1),), one from step 200 on',
    ),
    ('order', ORDERS, 'messages of x, beside the gradient, or of x + u'),
    ('fragments', count(), 'of the model, one sent at a time'),
    ('overlap', flag(), 'messages do not wait for gradients'),
  ),
  *arguments(
    'topology',
    'who talks to whom',
    ('weight', SHARE, 'of a neighbour, in ring and torus'),
    ('rows', count(1, MOST), 'of torus'),
    ('cols', count(1, MOST), 'of torus'),
    ('rounds', count(1, 10**4), 'of random_matchings, then again'),
    ('seed', SEED, 'of random_matchings'),
    ('k', count(1, MOST), 'of base_graph: neighbours in a round'),
  ),
  Entry('gamma', SHARE, 'of the slack matrix gamma W + (1 - gamma) I'),
  *_of_quantizer('quantizer', 'how messages are written in few bits'),
  *_of_quantizer('reduce_quantizer', 'the same, of means within a pod'),
  *arguments(
    'smoothness',
    "the quantizer's coordinates: none, layer, peak, diagonal, kronecker",
    ('refresh', count(0), 'steps between estimates; 0 for one'),
    ('draws', count(), 'backward passes of an estimate'),
    ('floor', positive(), 'of eigenvalues, over their mean'),
    ('power', number(), 'of D, not 0'),
    ('per_worker', flag(), 'a D for each, or one for all'),
  ),
  *rows(
    '',
    ('rotated', flag(), 'quantize in coordinates that are all alike'),
    ('coded', optional(number(above=0)), 'room for a coded value, in bits'),
  ),
  *arguments(
    'code',
    'how a coded value is written',
    ('probabilities', many(number(least=0)), 'of huffman: of each code'),
  ),
  *rows(
    '',
    ('largest_gradient', positive(), 'what no coordinate exceeds: for limits'),
    ('answered', flag(), 'both ends leave out what one could not read'),
    (
      'patience',
      optional(count(0)),
      'times in a row that an edge may be of no use',
    ),
  ),
  *arguments(
    'theta',
    'how theta moves: fixed, or follow the learning rate down',
    ('shrink', number(above=0, below=1), 'of follow: at most so fast'),
    ('power', number(above=0, most=10), 'of follow: of the rate'),
  ),
  *rows(
    '',
    ('scales_from', text(), 'work directory of a run: theta per leaf'),
    ('log_every', count(), 'steps from a row of the metrics to the next'),
    ('probe_every', count(0), 'steps; distances per leaf, 0 for never'),
    ('gradient_probe_every', count(0), 'steps; noise of means, 0 for never'),
    ('gradient_probe_draws', count(2), 'of that noise'),
    ('eval_every', EPOCHS, 'epochs between tests'),
    ('checkpoint_every', EPOCHS, 'epochs between checkpoints'),
    ('worker_test_images', count(), "for each worker's accuracy"),
    ('tensorboard', flag(), 'writes events as well'),
  ),
)

LABORATORY = (
  *rows(
    '',
    ('laboratory', one_of(True), 'a convex problem, in float64'),
    ('seed', SEED, 'of everything that is random'),
    ('seeds', count(1, 1000), 'runs of each method'),
    ('workers', count(1, MOST), 'each with rows of its own'),
    ('runner', one_of('simulated'), 'a laboratory is on one device'),
    ('row_scaled', flag(), 'each row over its largest entry'),
    ('norm', one_of('l2', 'linf'), 'of messages'),
    ('iterations', count(1, 10**8), 'of a method, at most'),
    ('clock', flag(), 'also time each method alone'),
    ('methods', many(text(), least=1), 'some of configs/smoothness.py'),
  ),
  *arguments('data', 'rows and labels', ('path', text(), 'of libsvm: a file')),
  *arguments('partition', 'who gets which rows'),
  *arguments(
    'problem',
    'what is minimized',
    ('lam', positive(), 'regularizer, or L_i is singular'),
  ),
)


def of(config) -> tuple[Entry, ...]:
  """The entries of such a config."""
  return LABORATORY if 'laboratory' in config else TRAINING
