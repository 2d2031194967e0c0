"""Every mistake gets one line that names it, and exit status 2."""

import contextlib
import io
import os
import runpy
import subprocess
import sys

import pytest

from configs import digits
from moniqua_jax import command_line
from moniqua_jax.command_line import words
from moniqua_jax.launch import __main__ as launch
from moniqua_jax.training import progress, resolve
from tests import helpers, programs
from tests.fresh import python
from tests.trained import built

HEAVY = 'flax', 'grain', 'matplotlib', 'orbax', 'sklearn', 'tqdm'


def config_with(method='moniqua4', **entries):
  config = digits.get_config(method)
  config.update(entries)
  return config


MEANS = dict(
  gossip=dict(name='none'),
  reduce=dict(name='allreduce', strategy='scatter_reduce'),
  quantizer=dict(name='eden', bits=2, theta=None),
)
QSGD = dict(name='qsgd', bits=4, theta=None)
MISTAKES = {
  'a model': (
    dict(model=dict(name='resnet21')),
    r"config.model.name='resnet21'; choose from .*'resnet20'",
  ),
  'a quantizer': (
    dict(quantizer=dict(name='qsdg')),
    r"config.quantizer.name='qsdg'; choose from .*'moniqua'",
  ),
  'a topology': (
    dict(topology=dict(name='rign')),
    r"config.topology.name='rign'; choose from .*'ring'",
  ),
  'an algorithm': (
    dict(gossip=dict(name='dpsdg')),
    r"config.gossip.name='dpsdg'; choose from .*'dpsgd'",
  ),
  'a runner': (dict(runner='vmap'), "config.runner='vmap'; .* 'sharded'"),
  'a schedule': (
    dict(learning_rate=dict(name='linear')),
    r"config.learning_rate.name='linear'; choose from",
  ),
  'd2 on an even ring': (
    dict(gossip=dict(name='d2')),
    r'config.gossip: d2 needs lambda_n\(W\) > -1/3; .* lazy\(topology, 0.75\)',
  ),
  'a ring that swings': (
    dict(topology=dict(name='ring', weight=0.5)),
    r'config.gossip: dpsgd: .* lambda = -1 of W.* lazy\(topology, 0.5\)',
  ),
  'replicas and a graph that turns': (
    dict(
      gossip=dict(name='choco'),
      topology=dict(name='random_matchings', rounds=8, seed=0),
    ),
    'config.gossip: choco takes one topology',
  ),
  'an argument of another algorithm': (
    dict(gossip=dict(eta=0.5)),
    'config.gossip.eta is not an argument of dpsgd',
  ),
  'delays': (
    dict(gossip=dict(name='adpsgd', delays=-1)),
    'config.gossip.delays=-1; it must be a whole number from 0',
  ),
  'local steps': (
    dict(local_steps=2, gossip=dict(name='dcd')),
    'config.local_steps=2: every: dcd must see each step',
  ),
  'local steps that change within a period': (
    dict(local_steps=2, local_steps_from=((1, 2),)),
    'config.local_steps=2, with all that comes from some step on: from step 0',
  ),
  'fragments of what must see each step': (
    dict(fragments=2, gossip=dict(name='dcd')),
    'config.fragments=2: streaming: dcd must see each step',
  ),
  'more fragments than parameters': (
    dict(fragments=99999),
    'config.fragments=99999 is more than the 9610 parameters',
  ),
  'a code that wants a zero': (
    dict(coded=2.0),
    "config.coded=2.0 by config.code.name='recursive': A grid without a zero",
  ),
  'no fragments': (dict(fragments=0), 'config.fragments=0; .* >= 1'),
  'fragments of what is looked at whole': (
    MEANS | dict(fragments=2, gradient_probe_every=5),
    'config.gradient_probe_every=5 is of means of gradients; .* take 0',
  ),
  'rounds of nothing': (
    MEANS | dict(rounds=2),
    'config.rounds=2 needs gossip; .* take .*=dpsgd, or --config.rounds=1',
  ),
  'an outer optimizer of nothing': (
    dict(outer=dict(momentum=0.9), gossip=dict(name='d2')),
    r"config.outer=\{.*'momentum': 0.9.* set config.gossip.name to dpsgd",
  ),
  'an outer optimizer of the other order': (
    dict(outer=dict(momentum=0.9)),
    r'config.outer=.* set config.order to adapt_then_combine',
  ),
  'a decoder whose heads do not fit': (
    dict(model=dict(name='transformer', width=10, heads=4)),
    'config.model: width=10 is cut into heads=4, .* take a width that 2 ',
  ),
  'a text that is not there': (
    dict(data=dict(name='text', path='/nowhere')),
    "config.data: path='/nowhere' is no file, and no folder",
  ),
  'an outer rate': (
    MEANS | dict(outer=dict(learning_rate=3.0)),
    'config.outer.learning_rate=3.0; it must be a number above 0',
  ),
  'an outer momentum': (
    MEANS | dict(outer=dict(momentum=float('nan'))),
    'config.outer.momentum=nan; it must be .* at least 0 and below 1',
  ),
  'fragments and scales of leaves': (
    dict(fragments=2, scales_from='runs/a'),
    "config.fragments=2 cuts .* config.scales_from='runs/a'",
  ),
  'fragments and blocks of leaves': (
    dict(fragments=2, quantizer=dict(name='block', theta=None)),
    "config.fragments=2 cuts .* config.quantizer.name='block'",
  ),
  'fragments in the shape of the loss': (
    dict(fragments=2, smoothness=dict(name='layer')),
    "config.fragments=2 cuts .* config.smoothness.name='layer'",
  ),
  'equal parts and blocks of leaves': (
    MEANS | dict(quantizer=dict(name='block', theta=None)),
    "config.quantizer.name='block' is made for leaves, .*strategy=all_gather",
  ),
  'equal parts in the shape of the loss': (
    MEANS | dict(quantizer=QSGD, smoothness=dict(name='diagonal')),
    "config.smoothness.name='diagonal' is made for leaves",
  ),
  'equal parts and scales of leaves': (
    MEANS | dict(quantizer=QSGD, scales_from='runs/a'),
    "config.scales_from='runs/a' is made for leaves",
  ),
  'a form of no momentum': (
    dict(momentum=0.0, nesterov=True),
    'config.nesterov=True is a form of the momentum',
  ),
  'a form of no outer momentum': (
    MEANS | dict(outer=dict(nesterov=True)),
    'config.outer.nesterov=True is a form of the momentum',
  ),
  'no local steps': (dict(local_steps=0), 'config.local_steps=0; .* >= 1'),
  'patience without answers': (
    dict(patience=3),
    'config.patience=3: .* set config.answered',
  ),
  'a loop gain above 1': (
    dict(quantizer=dict(name='auto_theta', theta=None, bits=1, start=1.0)),
    r'config.quantizer: bits=1, .* loop gain .* lazy\(topology, 0.13\)',
  ),
  'no bits': (
    dict(quantizer=dict(bits=0)),
    'config.quantizer.bits=0; .* from 1 to 8',
  ),
  'nine bits': (
    dict(quantizer=dict(bits=9)),
    'config.quantizer.bits=9; .* from 1 to 8',
  ),
  'theta 0': (
    dict(quantizer=dict(theta=0.0)),
    'theta=0.0; .* positive',
  ),
  'theta < 0': (dict(quantizer=dict(theta=-1.0)), 'theta=-1.0'),
  'devices': (
    dict(runner='sharded', workers=7),
    'workers=7, but there are 8 devices',
  ),
  'a torus of nine': (
    dict(topology=dict(name='torus', rows=3, cols=3)),
    'config.topology has 9 workers, config.workers=8',
  ),
  'half a torus': (
    dict(topology=dict(name='torus', rows=2)),
    'torus needs topology.cols',
  ),
  'a hypercube of six': (
    dict(topology=dict(name='hypercube'), workers=6),
    'config.topology: .*6',
  ),
  'gamma': (dict(gamma=0.0), 'gamma'),
  'no data_dir': (dict(data=dict(name='cifar10')), 'needs data.data_dir'),
  'data_dir': (
    dict(data=dict(name='cifar10', data_dir='nowhere')),
    r'nowhere.*cifar10',
  ),
  'batches': (
    dict(batch_size=200),
    'batch_size=200 is larger than the shard of worker 5 .179 images',
  ),
  'an argument': (
    dict(topology=dict(rows=2)),
    'config.topology.rows is not an argument of ring',
  ),
  'silence': (
    dict(reduce=dict(name='none'), gossip=dict(name='none')),
    'the workers would never talk',
  ),
  'scales': (dict(scales_from='nowhere'), 'no leaf_distance.json'),
}


WHOLE = {
  'block': dict(quantizer=dict(name='block', theta=None, bits=3)),
  'smoothness': dict(quantizer=QSGD, smoothness=dict(name='diagonal')),
}


@pytest.mark.parametrize('name', WHOLE)
def test_a_mean_of_what_workers_moved_is_of_all_leaves(name):
  """One of gradients is of the large, and of so many values each is made."""
  mean = dict(name='allreduce', strategy='all_gather')
  entries = dict(reduce=mean, gossip=dict(name='none')) | WHOLE[name]
  for steps in (1, 3):
    sent = built(config_with(**entries, local_steps=steps)).sent.by_worker
    assert sent.whole.sum() > 0


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_named(mistake):
  entries, message = MISTAKES[mistake]
  with pytest.raises(ValueError, match=message) as error:
    built(config_with(**entries))
  assert '\n' not in str(error.value)


def parsed(capsys, *argv):
  """The exit status and the one line of a command line with a mistake."""
  with pytest.raises(SystemExit) as error:
    command_line.parser(['train.py', *argv])
  return error.value.code, capsys.readouterr().err


def test_unknown_config_file(capsys):
  status, text = parsed(capsys, '--config=configs/nope.py')
  assert status == 2 and 'configs/nope.py: no such file' in text
  assert 'configs/digits.py' in text and text.count('\n') == 1


SPELLED = 'digits', 'configs/digits.py', f'{programs.ROOT}/configs/digits.py'


@pytest.mark.parametrize('name', SPELLED)
def test_a_config_has_a_name_and_a_path(name, tmp_path, monkeypatch):
  expected = digits.get_config('moniqua4').to_json()
  for folder in (programs.ROOT, tmp_path):
    monkeypatch.chdir(folder)
    assert command_line.config(f'{name}:moniqua4').to_json() == expected
    assert command_line.methods(name) == [*digits.METHODS]


def test_a_file_goes_before_the_config_of_its_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'configs').mkdir()
  mine = tmp_path / 'configs' / 'digits.py'
  mine.write_text('get_config = lambda: 7')
  assert command_line.config('configs/digits.py') == 7
  assert command_line.config('digits').workers == 8


def test_a_file_that_is_no_config_is_named(tmp_path):
  (tmp_path / 'mine.py').write_text('x = 1')
  with pytest.raises(ValueError, match='mine.py defines no get_config'):
    command_line.config(f'{tmp_path}/mine.py')


BEGINNING = 'from configs import digits\n\ndef get_config(method="dpsgd"):\n'
BROKEN = {
  'it does not parse': ('  return digits.default(', "line 4: '(' was never"),
  'it raises': (
    '  c = digits.default()\n  c.bits = c.bitz',
    'line 5: Attribute',
  ),
  'by itself': ('  return int("x")', 'line 4: ValueError: invalid literal'),
  'an entry that it lacks': (
    '  c = digits.get_config(method)\n  c.epoch = 1',
    """line 5: AttributeError: 'Key "epoch" does not exist""",
  ),
}


@pytest.mark.parametrize('what', BROKEN)
def test_a_file_that_is_broken_is_named_with_its_line(what, tmp_path):
  text, message = BROKEN[what]
  (tmp_path / 'mine.py').write_text(BEGINNING + text)
  with pytest.raises(ValueError, match='mine.py, line') as error:
    command_line.config(f'{tmp_path}/mine.py')
  said = str(error.value)
  assert message in said and '\n' not in said and len(said) < 400


# Of a file; what is wrong is found in the program alone.
WHEN_READ = {
  'raise SystemExit': 'mine.py, line 1: SystemExit',
  f'import jax\njax.devices()\n{BEGINNING}  return digits.get_config(method)': (
    'JAX was used before it could have 8 devices, as by a config that'
  ),
}


@pytest.mark.parametrize('text', WHEN_READ, ids=['it ends', 'it runs JAX'])
def test_what_a_file_does_when_it_is_read_is_a_mistake(text, tmp_path):
  (tmp_path / 'mine.py').write_text(text)
  flags = f'--config={tmp_path}/mine.py', '--runner=sharded', '--dry_run'
  run = programs.run('train.py', *flags, folder=tmp_path)
  assert run.status == 2 and run.err.count('\n') == 1, run.err
  assert WHEN_READ[text] in run.err


def test_a_config_of_another_type_is_told_so(tmp_path, capsys):
  (tmp_path / 'mine.py').write_text('get_config = lambda: {"seed": 1}')
  status, text = parsed(capsys, f'--config={tmp_path}/mine.py')
  assert status == 2 and "get_config gives {'seed': 1}, a dict; it must" in text


def test_home_is_found_in_a_flag(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('HOME', str(tmp_path))
  _, text = parsed(capsys, '--config=~/nope.py:dpsgd')
  assert f'--config={tmp_path}/nope.py: no such file' in text


@pytest.mark.filterwarnings('ignore:the load_module')  # of ml_collections
def test_an_entry_is_unset_and_a_quantizer_switched(monkeypatch):
  config = 'configs/digits.py:moniqua4'
  name = '--config.quantizer.name=nuqsgd'
  found = programs.parsed(monkeypatch, f'--config={config}', name)
  with pytest.raises(ValueError, match='leave it out by (.*)$') as error:
    resolve.resolve(found)
  away = str(error.value).split('leave it out by ')[1]
  assert away == '--config.quantizer.theta=None'
  flags = f'--config={config}', name, away, '--config.reduce_quantizer.bits=4'
  found = programs.parsed(monkeypatch, *flags)
  assert found.quantizer.theta is None and found.reduce_quantizer.bits == 4
  apart = [*flags[:2], *away.split('='), flags[-1]]
  assert command_line.joined(['train.py', *apart]) == ['train.py', *flags]
  with pytest.raises(ValueError, match='reduce_quantizer.bits is not an arg'):
    resolve.resolve(found)
  resolve.resolve(programs.parsed(monkeypatch, *flags[:-1]))


def test_a_letter_that_a_terminal_has_not_is_a_question_mark(monkeypatch):
  stream = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
  monkeypatch.setattr(sys, 'stdout', stream)
  monkeypatch.setattr(sys, 'stderr', None)  # as after 2>&-
  with pytest.raises(SystemExit):
    command_line.parser(['train.py', '--list'])
  print('2.5 ± 0.1', flush=True)
  with contextlib.closing(sys.stderr):
    progress.make(2, 0).close()
  assert stream.buffer.getvalue().endswith(b'2.5 ? 0.1\n')


@pytest.mark.parametrize('name', ['stdout', 'stderr'])
def test_a_stream_that_nobody_reads_ends_no_program(name, monkeypatch):
  """As after | head, or | tee that the same Ctrl-C has ended."""
  reader, writer = os.pipe()
  os.close(reader)
  with open(writer, 'w') as stream:
    monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(sys, f'__{name}__', stream)
    command_line.legible()
    print('x' * 10**5, file=getattr(sys, name), flush=True)


def test_ctrl_c_is_one_line_and_status_130(capsys):
  with pytest.raises(SystemExit) as ended, command_line.one_line_errors():
    raise KeyboardInterrupt
  assert ended.value.code == 130
  assert capsys.readouterr().err == 'interrupted.\n'


def test_an_unknown_name_is_told_the_names(capsys):
  status, text = parsed(capsys, '--config=digit:moniqua4')
  assert status == 2 and "'digits', 'digits_few_bits'" in text
  assert text.count('\n') == 1


def test_what_is_listed_is_there(capsys):
  with pytest.raises(SystemExit) as ended:
    command_line.parser(['train.py', '--list'])
  assert not ended.value.code
  out = capsys.readouterr().out
  files = {path.stem for path in (programs.ROOT / 'configs').glob('*.py')}
  assert {*command_line.names()} == files
  for name in files:
    assert f'{name}: ' in out
    first, *_, last = command_line.methods(name)
    for method in (first, last):
      assert f' {method}' in out
      assert command_line.config(f'{name}:{method}').is_locked


def test_what_has_no_docstring_is_listed(monkeypatch):
  bare = {'__doc__': None, 'METHODS': ('a', 'b')}  # as with python -OO
  monkeypatch.setattr(runpy, 'run_path', lambda path: bare)
  assert words.listed('digits') == 'digits: \n  a  b\n'


# A program that parses flags has no use for what it runs on.
LIGHT = f"""
import sys

class Blocker:
  def find_spec(name, path=None, target=None):
    assert name.partition('.')[0] not in {HEAVY}, name

sys.meta_path.insert(0, Blocker)
import runpy, time
sys.argv = {{}}
try:
  runpy.run_path('train.py', run_name='__main__')
finally:
  print(time.process_time())
"""


EARLY = {
  '--help': (0, 'moniqua8  moniqua4'),
  '--config=digits_sorted --help': (0, 'Methods of digits_sorted'),
  '--list': (0, 'smoothness_digits: '),
  '--bits=1': (2, "Unknown command line flag 'bits'"),
  '--config=digits:nope': (2, 'choose from'),
  '--config=digits:moniqua4': (2, '--workdir is not given'),
  '--workdir=a b': (2, "['b'] are not flags; each is --NAME=VALUE"),
}


@pytest.mark.parametrize('flags', helpers.tiered(EARLY, ['--help']))
def test_help_and_mistakes_are_early(flags):
  status, text = EARLY[flags]

  def seconds():
    """Of the CPU; what else runs on a machine makes it more, never less."""
    ended = python(LIGHT.format(['train.py', *flags.split()]), check=False)
    assert ended.returncode == status, ended.stderr
    assert text in (ended.stderr if status else ended.stdout)
    return float(ended.stdout.split()[-1])

  assert any(seconds() < 2 for _ in range(3))


COMMANDS = {
  '--config=configs/digits.py:nope': 'nope is unknown; choose from',
  '--config.bits=1': 'did you mean budget.bits or quantizer.bits',
  '--config.quantizer.bitz=1': "config.quantizer has no 'bitz'; did you mean",
  '--config.epochs=many': 'could not convert',
  '--config.log_every=0': '--config.log_every=10',
  '--config.quantizer.bits=1': 'not an argument of full_precision',
  '--bits=1': "Unknown command line flag 'bits'",
  '--config.rotated=yes': 'rotated=yes: Non-boolean argument to boolean fl',
  '--lr=1': "flag 'lr'; --help lists all, and an entry of the config is",
  '--runner=threads': '--runner=threads: value should be one of <',
  '--flagfile=nowhere': "directory: 'nowhere'; --flagfile takes a file with",
}


@pytest.mark.parametrize('argument', COMMANDS)
def test_exit_status_2_and_one_line(argument, tmp_path):
  workdir = f'--workdir={tmp_path}/run'
  status, _, err = programs.run('train.py', argument, workdir, folder=tmp_path)
  assert status == 2
  assert COMMANDS[argument] in err
  lines = err.strip().splitlines()
  assert sum(line.startswith('error: ') for line in lines) == 1
  assert not (tmp_path / 'run').exists()
  assert 'Traceback' not in err


def test_a_file_of_flags_stands_for_what_it_holds(tmp_path):
  file = tmp_path / 'flags'
  file.write_text(f'{CONFIG}\n--config.quantizer.bits=8\n--dry_run\n')
  run = programs.run('train.py', f'--flagfile={file}', folder=tmp_path)
  assert run.status == 0, run.err
  assert 'moniqua, bits 8' in run.out


def test_a_launched_script_is_the_one_beside_python(tmp_path, monkeypatch):
  script = tmp_path / 'moniqua-train'
  script.touch(mode=0o755)
  monkeypatch.setattr(sys, 'executable', str(tmp_path / 'python'))
  for name, found in (('moniqua-train', str(script)), ('train.py', 'train.py')):
    first, _ = launch.commands([name, '--resume'], 2, 1)
    assert first[:4] == [sys.executable, '-u', found, '--resume']


def test_a_launcher_starts_python_by_itself(monkeypatch, capsys):
  command = ['moniqua-launch', '--n', '2', '--', 'python3', 'train.py']
  monkeypatch.setattr(sys, 'argv', command)
  with pytest.raises(SystemExit):
    launch.main()
  assert (
    'python3 is not needed: after -- comes the f' in capsys.readouterr().err
  )


CONFIG = '--config=configs/digits.py:moniqua1'


def test_dry_run(tmp_path):
  run = programs.run('train.py', CONFIG, '--dry_run', folder=tmp_path)
  assert run.status == 0, run.err
  for part in ('9,610 parameters', 'ring', 'spectral gap', 'theta', '2,428 b'):
    assert part in run.out


def test_a_run_ends_with_its_table_and_figure(tmp_path):
  workdir = tmp_path / 'run'
  run = programs.run(
    *('train.py', CONFIG, f'--workdir={workdir}', '--config.epochs=0.2'),
    *('--config.learning_rate.warmup_epochs=0.1',),
    folder=tmp_path,
    settings={'jax_disable_most_optimizations': True},
  )
  assert run.status == 0, run.err
  assert 'Moniqua 1 bit' in run.out
  assert 'Moniqua 1 bit' in (workdir / 'table.md').read_text()
  for name in ('figure.svg', 'figure.png'):
    assert (workdir / name).stat().st_size > 0


def test_without_importing_ahead_it_is_the_same(tmp_path):
  """The one program of this file that is not a fork."""
  command = [sys.executable, 'train.py', '--config.bits=1']
  run = subprocess.run(command, cwd=programs.ROOT, capture_output=True)
  assert run.returncode == 2 and run.stderr.count(b'error: ') == 1
