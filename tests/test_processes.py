"""Many processes: the same bits as one, and one clear line when they fail."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from moniqua_jax import command_line
from moniqua_jax.launch import __main__ as launch
from moniqua_jax.launch import initialize, multihost
from moniqua_jax.training import checkpoint, metrics
from tests import helpers, processes_program, programs
from tests.trained import compiled_quickly, rows, small, stop_after

# One of each kind of arithmetic; `-m slow` goes through all.
KINDS = ['moniqua 4 stochastic', 'nuqsgd 4', 'top_k']
REST = sorted(set(helpers.QUANTIZERS) - set(KINDS))
OTHERS = [REST[i : i + 8] for i in range(0, len(REST), 8)]


# ------------------------------------------------------------- the same bits


def answer(n, folder, **tasks):
  """What comes of the tasks of processes_program.py in n processes."""
  words = [f'{task}={",".join(names)}' for task, names in tasks.items()]
  program = 'tests/processes_program.py'
  settings = {'jax_disable_most_optimizations': False}
  started = programs.launched(
    n, program, *words, folder=folder, settings=settings
  )
  out = programs.finished(started, folder)
  return json.loads(out.splitlines()[-1])


def alone(task, names):
  """The same in this process."""
  with compiled_quickly(False):
    return processes_program.results(task, names)


def test_two_processes_do_what_one_does(tmp_path):
  """A round, bit for bit."""
  one = alone('round', KINDS)
  assert answer(2, tmp_path, round=KINDS)['round'] == one
  assert all(len(set(workers)) == 8 for workers in one.values())


@pytest.mark.slow
@pytest.mark.parametrize('names', OTHERS, ids=lambda names: f'{names[0]} ...')
def test_a_round_has_the_same_bits_in_one_process_and_in_two(tmp_path, names):
  two = answer(2, tmp_path, round=names)['round']
  assert two == alone('round', names)


@pytest.mark.slow
@pytest.mark.parametrize('n', [2, 4])
def test_a_quadratic_descends_the_same_in_one_process_and_in_many(n, tmp_path):
  names = ['full_precision', 'moniqua 4 stochastic', 'moniqua 2 dithered']
  found = answer(n, tmp_path, quadratic=names)['quadratic']
  for name, expected in alone('quadratic', names).items():
    np.testing.assert_allclose(found[name], expected, atol=1e-6)


# ------------------------------------------------------------- train.py


EPOCHS = 8.0  # 88 steps: time to be killed in the middle


def train(
  n, workdir, folder, *arguments, method='moniqua4', program='train.py'
):
  """All processes of train.py, with 4 bits if nothing is said."""
  return programs.launched(
    n,
    program,
    f'--config=configs/digits.py:{method}',
    f'--config.epochs={EPOCHS}',
    '--config.learning_rate.warmup_epochs=0.5',
    '--config.log_every=5',
    '--config.eval_every=1',
    '--config.checkpoint_every=1',
    f'--workdir={workdir}',
    *arguments,
    folder=folder,
  )


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The folder of a run of two processes."""
  folder = tmp_path_factory.mktemp('whole')
  programs.finished(train(2, folder / 'run', folder), folder)
  return folder / 'run'


def test_training_is_the_same_in_two_processes(tmp_path, whole):
  config = small(epochs=EPOCHS, log_every=5, runner='sharded')
  with compiled_quickly():
    stop_after(config, 22, tmp_path)
  alone = rows(tmp_path)
  assert alone[-1]['step'] >= 22
  for one, two in zip(alone, rows(whole), strict=False):
    assert one.keys() == two.keys()
    for name, value in one.items():
      assert two[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


WAYS = {  # to talk -> (method, what else)
  'fragments': (
    'moniqua4',
    dict(fragments=2, rotated=True, order='adapt_then_combine'),
  ),
  'means': (
    'dpsgd',
    dict(
      gossip=dict(name='none'),
      reduce=dict(name='allreduce', strategy='scatter_reduce'),
      quantizer=dict(name='eden', bits=1),
      local_steps=2,
    ),
  ),
  'late': (
    'dpsgd',
    dict(
      gossip=dict(name='none'),
      reduce=dict(name='allreduce'),
      local_steps=4,
      outer=dict(momentum=0.5, nesterov=True, delay=2),
    ),
  ),
}


@pytest.mark.parametrize('way', helpers.tiered(WAYS, ['means']))
def test_other_ways_train_the_same_in_two_processes(tmp_path, way):
  method, entries = WAYS[way]
  entries = entries | dict(epochs=3.0)
  flags = [f'--config.{k}={v}' for k, v in command_line.leaves(entries)]
  folder = tmp_path / 'two'
  folder.mkdir()
  started = train(2, folder / 'run', folder, *flags, method=method)
  programs.finished(started, folder)
  config = small(method, log_every=5, runner='sharded')
  with compiled_quickly(), config.unlocked():
    config.update(entries)
    stop_after(config, 22, tmp_path / 'one')
  for one, two in zip(
    rows(tmp_path / 'one'), rows(folder / 'run'), strict=False
  ):
    for name, value in one.items():
      assert two[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


def steps_in(workdir) -> int:
  """The last step of which there is a whole row."""
  path = workdir / 'metrics.jsonl'
  if not path.exists() or path.read_text().count('\n') < 3:
    return 0
  return metrics.read(workdir)[-1]['step']


IMPATIENT = """
import runpy
from moniqua_jax.launch import watch
watch.SILENCE = 8
runpy.run_path('train.py', run_name='__main__')
"""


def killed_in_training(
  n, lost, workdir, folder, program='train.py', silence=20
):
  """Kills one of n processes; the others end, and name it."""
  started = train(n, workdir, folder, program=program)
  programs.wait_for(lambda: steps_in(workdir) >= 30)
  started[lost].kill()
  began = time.monotonic()
  for i in set(range(n)) - {lost}:
    status, _, err = programs.ended(started[i], folder / str(i))
    assert status != 0
    said = f'error: process {lost} gave no sign of life for {silence} s'
    assert said in err
  assert time.monotonic() - began < silence + 40


@pytest.mark.slow
def test_a_killed_process_is_named_and_the_run_resumes_bit_for_bit(
  tmp_path, whole
):
  """The others wait 8 s for it; those of the slow tier 20, as users' do."""
  cut, program = tmp_path / 'run', tmp_path / 'impatient.py'
  program.write_text(IMPATIENT)
  killed_in_training(2, 1, cut, tmp_path, str(program), silence=8)
  assert len(rows(cut)) < len(rows(whole))
  step, state = checkpoint.last(cut, 8)
  assert 0 < step < 88 and np.isfinite(state['params']).all()
  programs.finished(train(2, cut, tmp_path, '--resume'), tmp_path)
  assert rows(cut) == rows(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
  'name,asked,status',
  [('SIGTERM', [1], 0), ('SIGTERM', [0, 1], 0), ('SIGINT', [0, 1], 130)],
)
def test_all_save_after_the_same_step(tmp_path, name, asked, status):
  cut = tmp_path / 'run'
  # theta follows the learning rate, which another number of epochs changes.
  fixed = '--config.theta.name=fixed', '--config.theta.shrink=None'
  started = train(2, cut, tmp_path, *fixed, '--config.epochs=5000.0')
  programs.wait_for(lambda: steps_in(cut) >= 10)
  for i in asked:
    os.kill(started[i].pid, getattr(signal, name))
  for i, process in enumerate(started):
    found, _, err = programs.ended(process, tmp_path / str(i))
    assert found == status, err
  step, _ = checkpoint.last(cut, 8)
  assert step == steps_in(cut)
  flags = *fixed, '--resume', f'--config.epochs={(step + 11) / 11}'
  programs.finished(train(2, cut, tmp_path, *flags), tmp_path)
  assert steps_in(cut) == step + 11


@pytest.mark.slow
def test_one_killed_process_of_four_ends_the_others(tmp_path):
  killed_in_training(4, 2, tmp_path / 'run', tmp_path)
  assert checkpoint.last(tmp_path / 'run', 8)[0] > 0


@pytest.mark.slow
def test_processes_that_are_all_killed_resume(tmp_path, whole):
  cut = tmp_path / 'run'
  started = train(2, cut, tmp_path)
  programs.wait_for(lambda: steps_in(cut) >= 30)
  for process in started:
    process.kill()
  for process in started:
    process.join()
  assert len(rows(cut)) < len(rows(whole))
  programs.finished(train(2, cut, tmp_path, '--resume'), tmp_path)
  assert rows(cut) == rows(whole)


# ------------------------------------------------------------- mistakes


def test_the_launcher_ends_all_when_one_fails(tmp_path):
  program = tmp_path / 'program.py'
  program.write_text(
    'import sys, time\n'
    "if sys.argv[-1] == '--process_id=1': sys.exit(7)\n"
    "print('waiting')\n"
    'time.sleep(100)\n'
  )
  began = time.monotonic()
  command = [sys.executable, '-m', 'moniqua_jax.launch', '--n=3', '--']
  done = subprocess.run(
    [*command, str(program)],
    cwd=programs.ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert time.monotonic() - began < 60
  assert done.returncode == 7
  assert 'process 1 ended with status 7; all are ended.' in done.stderr


MISTAKES = {
  'a flag of three': (
    ['--num_processes=2'],
    '--coordinator_address, --process_id not given',
  ),
  'an id too high': (
    [
      '--num_processes=2',
      '--process_id=2',
      '--coordinator_address=localhost:1',
    ],
    '--process_id=2 --num_processes=2; ids go from 0',
  ),
  'no port': (
    [
      '--num_processes=2',
      '--process_id=1',
      '--coordinator_address=localhost',
    ],
    "--coordinator_address='localhost'; it is HOST:PORT",
  ),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_has_one_line(name, tmp_path):
  arguments, message = MISTAKES[name]
  status, out, err = programs.run('train.py', *arguments, folder=tmp_path)
  assert status == 2 and out == ''
  assert message in err and len(err.splitlines()) == 1


def test_a_port_in_use_is_named():
  with socket.socket() as other:
    other.bind(('', 0))
    other.listen()
    port = other.getsockname()[1]
    with pytest.raises(ValueError, match='Address already in use'):
      initialize.join(f'localhost:{port}', 2, 0, workers=2)


JOIN = """
import sys
from moniqua_jax.launch import initialize, multihost
address, process_id = sys.argv[1:]
initialize.join(address, 2, int(process_id), workers=2, timeout=3)
"""


def test_processes_that_do_not_come_are_not_waited_for(tmp_path):
  """Process 1 finds no process 0, and process 0 of another run nobody."""
  program = tmp_path / 'join.py'
  program.write_text(JOIN)
  started, ports = [], [launch.free_port(), launch.free_port()]
  for i, port in enumerate(ports):
    command = str(program), f'localhost:{port}', str(i)
    started.append(programs.started(*command, folder=tmp_path / str(i)))
  alone, first = (programs.ended(started[i], tmp_path / str(i)) for i in (1, 0))
  assert alone.status == first.status == 2
  assert f'nobody listens at localhost:{ports[1]}' in alone.err
  assert 'not all processes came' in first.err


def mistaken(tmp_path, first, second) -> list[str]:
  """The error of each of two processes that were given different flags."""
  workdir = tmp_path / 'run'
  both = '--config=digits:moniqua4', f'--workdir={workdir}'
  commands = launch.commands(['train.py', *both], 2, launch.free_port())
  started = [
    programs.started(*commands[i][2:], *own, folder=tmp_path / str(i))
    for i, own in enumerate((first, second))
  ]
  said = [programs.ended(p, tmp_path / str(i)) for i, p in enumerate(started)]
  assert [each.status for each in said] == [2, 2]
  assert not workdir.exists()
  return [
    line
    for each in said
    for line in each.err.splitlines()
    if line.startswith('error: ')
  ]


DIFFERENT = {
  'a seed, workers that no two can share, and --resume': (
    ['--config.seed=3', '--config.workers=9', '--resume'],
    '--resume is False for process 0, True for 1; --config.seed is 0 for '
    'process 0, 3 for 1; --config.workers is 8 for process 0, 9 for 1',
  ),
  'workers': (['--config.workers=10'], '--config.workers is 8 for process 0'),
  'bits': (['--config.quantizer.bits=2'], 'bits is 4 for process 0, 2 for 1'),
  'a folder': (
    ['--workdir=elsewhere'],
    "--workdir is '.*' for process 0, 'els",
  ),
}


@pytest.mark.parametrize('name', helpers.tiered(DIFFERENT, list(DIFFERENT)[:1]))
def test_different_commands_are_named_on_all_processes(name, tmp_path):
  """Before anything is written."""
  flags, words = DIFFERENT[name]
  said = mistaken(tmp_path, [], flags)
  assert len(said) == 2 and said[0] == said[1]
  assert re.search(words, said[0]) and 'All take the same but' in said[0]


def test_workers_that_cannot_be_shared_are_named_on_all_processes(monkeypatch):
  alike = lambda text: [text] * 3
  monkeypatch.setattr(multihost.jax, 'process_count', lambda: 3)
  monkeypatch.setattr(multihost.watch, 'exchanged', alike)
  multihost.agreed({'--config.workers': 9}, 9)
  with pytest.raises(ValueError, match='8 workers .* equally by 3 processes;'):
    multihost.agreed({'--config.workers': 8}, 8)


PROXY = "import os\nos.environ['http_proxy'] = 'http://127.0.0.1:9'"


def test_a_proxy_does_not_hide_process_0(tmp_path):
  program = tmp_path / 'join.py'
  program.write_text(PROXY + JOIN.replace('timeout=3', 'timeout=30'))
  command = str(program), f'localhost:{launch.free_port()}'
  folders = [tmp_path / str(i) for i in (0, 1)]
  started = [programs.started(*command, f.name, folder=f) for f in folders]
  for process, folder in zip(started, folders, strict=True):
    assert programs.ended(process, folder).status == 0


def test_who_was_given_what():
  given = [{'a': 1, 'b': None}, {'a': 2, 'b': None}, {'a': 1, 'b': 'x'}]
  assert multihost.differences(given) == (
    "a is 1 for process 0 and 2, 2 for 1; b is None for process 0 and 1, 'x' "
    'for 2'
  )
  assert multihost.differences(given[:1] * 3) == ''


@pytest.mark.parametrize('port', ['0', '65536', '99999', '-1', ''])
def test_a_port_that_is_none_is_refused(port):
  with pytest.raises(ValueError, match='one port from 1 to 65535 for all'):
    initialize.join(f'localhost:{port}', 2, 1, workers=2)


@pytest.mark.slow
def test_a_lost_process_0_is_named(tmp_path):
  started = train(2, tmp_path / 'run', tmp_path, '--config.epochs=5000.0')
  programs.wait_for(lambda: steps_in(tmp_path / 'run') >= 10)
  started[0].kill()
  started[1].join(60)
  assert started[1].exitcode
  programs.wait_for(lambda: 'error: ' in (tmp_path / '1' / 'err').read_text())
  said = (tmp_path / '1' / 'err').read_text()
  assert 'error: process 0 is lost: nobody listens at localhost:' in said


@pytest.mark.skipif(sys.platform != 'linux', reason='Linux alone tells a child')
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGHUP])
@pytest.mark.usefixtures('heeding')
def test_the_launchers_children_end_with_it(number, tmp_path):
  program = tmp_path / 'program.py'
  program.write_text(
    'import os, sys, time\n'
    f"open(r'{tmp_path}/' + sys.argv[-1][-1], 'w').write(str(os.getpid()))\n"
    'time.sleep(100)\n'
  )
  command = [sys.executable, launch.__file__, '--n=2', '--', str(program)]
  with subprocess.Popen(command, stdout=subprocess.PIPE) as launcher:
    files = [tmp_path / str(i) for i in (0, 1)]
    there = lambda: all(file.exists() and file.read_text() for file in files)
    programs.wait_for(there)
    launcher.send_signal(number)
  for file in files:
    pid = int(file.read_text())
    programs.wait_for(lambda pid=pid: ended(pid))


def ended(pid) -> bool:
  """Whether a process is gone, or waits to be asked about."""
  try:
    state = pathlib.Path(f'/proc/{pid}/stat').read_text().rsplit(')')[-1]
  except FileNotFoundError:
    return True
  return state.split()[0] == 'Z'
