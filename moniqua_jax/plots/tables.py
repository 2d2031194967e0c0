"""Tables of runs, from what the runs wrote down: one row a run or a method."""

from collections.abc import Sequence
import json
import os

import numpy as np
import tabulate

from moniqua_jax.plots import kept
from moniqua_jax.training import metrics

DASH = '–'  # what was not measured

# Names that papers spell otherwise than Python does.
SPELLED = {
  'adiana': 'ADIANA',
  'adpsgd': 'AD-PSGD',
  'allreduce': 'all-reduce',
  'alq': 'ALQ',
  'alq_n': 'ALQ-N',
  'amq': 'AMQ',
  'amq_n': 'AMQ-N',
  'base_graph': 'base graph',
  'block': 'dithering by leaf',
  'chunked_top_k': 'chunked top k',
  'auto_theta': 'Moniqua auto theta',
  'choco': 'CHOCO',
  'd2': 'D²',
  'dcd': 'DCD',
  'dcgd': 'DCGD',
  'deepsqueeze': 'DeepSqueeze',
  'diana': 'DIANA',
  'double_squeeze': 'DoubleSqueeze',
  'dpsgd': 'D-PSGD',
  'ecd': 'ECD',
  'eden': 'EDEN',
  'fitted_theta': 'Moniqua fitted theta',
  'full_precision': '',
  'local': '',
  'moniqua': 'Moniqua',
  'none': '',
  'nuqsgd': 'NUQSGD',
  'one_peer_exponential': 'one-peer exponential',
  'one_peer_hypercube': 'one-peer hypercube',
  'power_sgd': 'PowerSGD',
  'push_sum': 'push-sum',
  'qdgd': 'QDGD',
  'qsgd': 'QSGD',
  'quasi_global': 'quasi-global',
  'random_matchings': 'random matchings',
  'terngrad': 'TernGrad',
}

# How the columns that `_measures` computes are written.
COLUMNS = {
  'epochs': '.3g',
  'MB sent': '.2f',
  'vs first': '.3f',
  'test %': '.2f',
  'bits/character': '.3f',
  'worst %': '.2f',
  'unreadable %': '.3g',
  'distance/theta': '.3g',
  'consensus rms': '.2g',
  'noise %': '.0f',
  'minutes': '.2f',
}
# Whom gradients go to, where it is not a chunk to each.
TO = {'all_gather': 'to all', 'of_senders': 'of who sent'}
OF_TEXT = ('bits/character',)  # columns of no other tables
NOTES = """\
MB sent: by each worker, 1 MB = 10^6 bytes. vs first: bytes per step, relative
to the first row. test %: accuracy of the mean model; worst %: of the worst
worker. unreadable %: of the messages. distance/theta: the largest of the run;
theta holds up to 1. consensus rms: of the workers from their mean, at the last
evaluation. noise %: of its square about what the code itself made."""


def by_seed(runs: Sequence[kept.Run]) -> list[list[kept.Run]]:
  """Groups runs whose configs are equal but for the seed, in order."""
  groups = {}
  for run in runs:
    own = dict(kept.entries(run.config | {'seed': None}))
    key = json.dumps(own, sort_keys=True)
    groups.setdefault(key, []).append(run)
  return list(groups.values())


def method(config: dict) -> str:
  """Names what a config trains with; a quantizer on D-PSGD stands alone.

  >>> moniqua = {'name': 'moniqua', 'bits': 4, 'theta': 1.0}
  >>> method({'gossip': {'name': 'd2'}, 'quantizer': moniqua, 'gamma': 0.2})
  'D², Moniqua 4 bits, gamma .2'
  """
  slots = ('reduce', 'gossip', 'quantizer')
  reduce, gossip, quantizer = (_spell(config.get(slot, {})) for slot in slots)
  shape = _shape(config.get('smoothness', {}))
  other = config.get('optimizer', {}).get('name', 'sgd').replace('sgd', '')
  fragments, every = config.get('fragments', 1), config.get('local_steps', 1)
  kind = _spell(config.get('momentum_kind', {}))
  often = [
    f'every {every} steps' if every > 1 else '',
    f'{kind} momentum' if kind else '',
    other,
    f'{fragments} fragments' if fragments > 1 else '',
  ]
  if not gossip:
    to = TO.get(config.get('reduce', {}).get('strategy'), '')
    words = [reduce, quantizer, shape, to, _coded(config), *often]
    words += _outer(config)
    return ', '.join(filter(None, words)) or DASH
  topology = config.get('topology', {'name': 'ring'})
  gamma = config.get('gamma', 1.0)
  rounds = config.get('rounds', 1)
  later = [
    f'from step {start} on {number} {of}'
    for entry, of in (('rounds_from', 'rounds'), ('local_steps_from', 'steps'))
    for start, number in config.get(entry, ())
  ]
  own = config['gossip'].get('gamma') or config['gossip'].get('eta')
  words = [
    reduce,
    '' if quantizer and gossip == SPELLED['dpsgd'] else gossip,
    quantizer,
    shape,
    _spell(topology) if topology['name'] != 'ring' else '',
    'theta per leaf' if config.get('scales_from') else '',
    'rotated' if config.get('rotated') else '',
    _coded(config),
    f'gamma {gamma:g}'.replace(' 0.', ' .') if gamma != 1 else '',
    f'own step {own:g}'.replace(' 0.', ' .') if own else '',
    f'{rounds} rounds' if rounds > 1 else '',
    *often,
    'adapt then combine' if 'then' in config.get('order', '') else '',
    *_outer(config),
    *later,
    'overlapped' if config.get('overlap') else '',
    f'({config["variant"]} variant)' if config.get('variant') else '',
  ]
  return ', '.join(filter(None, words))


def _coded(config) -> str:
  """Says which code shortens messages, and to how many bits a value."""
  if not config.get('coded'):
    return ''
  name = config.get('code', {}).get('name', 'recursive')
  return f'{name} code {config["coded"]:g}'.replace(' 0.', ' .')


def _outer(config) -> list[str]:
  """Says what of an outer optimizer is not that of a plain mean."""
  outer = config.get('outer', {})
  rate, momentum = outer.get('learning_rate', 1), outer.get('momentum', 0)
  return [
    f'outer rate {rate:g}' if rate != 1 else '',
    f'outer momentum {momentum:g}' if momentum else '',
    f'{outer["delay"]} steps late' if outer.get('delay') else '',
  ]


def table(runs: Sequence) -> str:
  """Draws a row a run in Markdown; an en dash is what was not measured."""
  return _of_groups([[run] for run in kept.loaded(runs)])


def seed_table(runs: Sequence) -> str:
  """Draws one row for all runs that differ only in their seed.

  Numbers are the mean ± the sample standard deviation; without ± where all
  seeds agree, and a dash where a seed lacks the number.
  """
  return _of_groups(by_seed(kept.loaded(runs)))


def markdown(titles: Sequence[str], rows: Sequence, words: int = 1) -> str:
  """Draws a table whose first columns are words; the others are numbers.

  >>> print(markdown(['bits', 'MB'], [['4 bits', '1.5']]), end='')
  | bits   |   MB |
  |:-------|-----:|
  | 4 bits |  1.5 |
  """
  cell = lambda value: ' '.join(str(value).splitlines()).replace('|', r'\|')
  rows = [[*map(cell, row)] for row in rows]
  align = ['left'] * words + ['right'] * (len(titles) - words)
  form = dict(tablefmt='pipe', colalign=align, disable_numparse=True)
  return tabulate.tabulate(rows, titles, **form) + '\n'


def _end(run, key) -> float:
  """Looks up the last value of a metric; NaN if there is none."""
  value = run.end.get(key)
  return np.nan if value is None else float(value)


def _bytes_a_step(run) -> float:
  """Divides the bytes of a run by its steps."""
  return _end(run, 'wire/bytes_sent') / (_end(run, 'step') or np.nan)


def _finished(run) -> bool:
  """Tells whether a run came to its last epoch."""
  steps_per_epoch = _end(run, 'step') / _end(run, 'epoch')
  epochs = run.config.get('epochs', 0.0)
  return _end(run, 'step') >= np.round(epochs * np.round(steps_per_epoch))


def group_name(group) -> str:
  """Names a group of runs by what their names begin with."""
  name = os.path.commonprefix([run.name for run in group])
  return name + '*' * (len(group) > 1)


def _spell(spec) -> str:
  """Says 'Moniqua 4 bits' of {'name': 'moniqua', 'bits': 4, ...}."""
  name = spec.get('name', 'none')
  words = SPELLED.get(name, name.replace('_', ' '))
  bits = spec.get('bits')
  if name == 'qsgd' and spec.get('norm') == 'linf':
    words = 'QSGDinf'
  if spec.get('zero_level') is False:
    words = f'{words} without zero'
  return f'{words} {bits} bit{"s" * (bits != 1)}' if bits else words


def _shape(spec) -> str:
  """Says 'D diagonal ^-1 shared' of {'name': 'diagonal', 'power': -1, ...}."""
  if spec.get('name', 'none') == 'none':
    return ''
  power, shared = spec.get('power') or 1, spec.get('per_worker') is False
  power = f' ^{power:g}' if power != 1 else ''
  return f'D {spec["name"]}{power}{" shared" if shared else ""}'


def _of_groups(groups) -> str:
  """Draws a row a group of runs."""
  has = lambda run: 'test/bits_per_character' in run.end
  of_text = any(has(run) for group in groups for run in group)
  columns = [name for name in COLUMNS if of_text or name not in OF_TEXT]
  rows = [_cells(group, groups[0][0], columns) for group in groups]
  return markdown(['run', 'method', 'seed', *columns], rows, words=2)


def _cells(group, first, columns) -> list[str]:
  """Fills the row of a group; `first` is the run that bytes compare with."""
  name = group_name(group)
  if not all(map(_finished, group)):
    name += ' (unfinished)'
  seeds = {run.config.get('seed', 0) for run in group}
  seed = f'n = {len(seeds)}' if len(group) > 1 else str(*seeds)
  rows = [_measures(run, first) for run in group]
  numbers = [_number([r[n] for r in rows], COLUMNS[n]) for n in columns]
  return [name, method(group[0].config), seed, *numbers]


def _measures(run, first):
  """Computes a run's numbers by column; NaN where there is none."""
  end = lambda key: _end(run, key)
  messages = end('gossip/messages') or np.nan
  return {
    'epochs': end('epoch'),
    'MB sent': end('wire/bytes_sent') / 1e6,
    'vs first': _bytes_a_step(run) / (_bytes_a_step(first) or np.nan),
    'test %': 100 * end('test/accuracy'),
    'bits/character': end('test/bits_per_character'),
    'worst %': 100 * end('test/worst_worker'),
    'unreadable %': 100 * end('gossip/unreadable') / messages,
    'distance/theta': end(kept.SHARE),
    'consensus rms': end('gossip/consensus_rms'),
    'noise %': 100
    * metrics.noise_share({'quantizer': {}} | run.config, run.end),
    'minutes': end('seconds') / 60,
  }


def _number(values, spec) -> str:
  """Writes '0.97', or '0.96 ± 0.01' of seeds that differ."""
  mean = np.mean(values)
  if np.isnan(mean):
    return DASH
  if np.ptp(values) == 0:
    return format(mean, spec)
  return f'{mean:{spec}} ± {np.std(values, ddof=1):{spec}}'


def source(run: kept.Run) -> str:
  """Says in one line where a run came from."""
  source = {'command': DASH, 'date': DASH, 'machine': DASH} | run.source
  seconds = _number([_end(run, 'seconds')], '.0f')
  facts = [
    f'- {run.name}: `{source["command"]}`',
    source['date'],
    f'{seconds} s on {source["machine"]}',
    ', '.join(f'{k} {v}' for k, v in source.get('versions', {}).items()),
  ]
  if 'resumed' in source:
    facts.append(f'resumed: `{json.dumps(source["resumed"], sort_keys=True)}`')
  return '; '.join(filter(None, facts))
