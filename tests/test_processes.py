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

from moniqua_jax.launch import __main__ as launch
from moniqua_jax.launch import initialize
from moniqua_jax.training import metrics
from tests import helpers

ROOT = pathlib.Path(__file__).parents[1]
# One of each kind of code; `-m slow` goes through all.
KINDS = [
  *helpers.A_FEW_QUANTIZERS,
  'uniform 8 nearest',
  'sign two_mean',
  'one_bit',
  'qsgdinf 4',
  'leveled',
  'terngrad',
  'dithering 5 norms 8',
  'natural',
  'top_k',
  'random_k',
]
REST = sorted(set(helpers.QUANTIZERS) - set(KINDS))
OTHERS = [REST[i : i + 8] for i in range(0, len(REST), 8)]
TRAIN = [
  'train.py',
  '--config=configs/digits.py:moniqua4',
  '--config.epochs=2',
  '--config.learning_rate.warmup_epochs=0.5',
  '--config.log_every=5',
]


def start(command, **options):
  env = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    **options,
  )


def finished(command, status=0) -> str:
  process = start(command)
  out, _ = process.communicate(timeout=600)
  assert process.returncode == status, out
  return out


def launched(n, *command) -> list[str]:
  return [
    *(sys.executable, '-m', 'moniqua_jax.launch'),
    *(f'--n={n}', '--', *command),
  ]


def answer(n, task, names) -> dict:
  out = finished(
    launched(n, 'tests/processes_program.py', task, ','.join(names))
  )
  line = next(line for line in out.splitlines() if line.startswith('[0] {'))
  return json.loads(line[4:])


@pytest.mark.parametrize(
  'names',
  [KINDS, *(pytest.param(names, marks=pytest.mark.slow) for names in OTHERS)],
  ids=lambda names: f'{names[0]} to {names[-1]}',
)
def test_a_round_has_the_same_bits_in_one_process_and_in_two(names):
  one, two = (answer(n, 'round', names) for n in (1, 2))
  assert one == two
  assert all(len(set(workers)) == 4 for workers in one.values())


def test_a_quadratic_descends_the_same_in_one_process_and_in_four():
  names = ['full_precision', 'moniqua 4 stochastic', 'moniqua 2 dithered']
  one, four = (answer(n, 'quadratic', names) for n in (1, 4))
  for name in names:
    np.testing.assert_allclose(four[name], one[name], atol=1e-6)


def rows(workdir):
  return [{**row, 'seconds': 0} for row in metrics.read(workdir)]


def test_training_is_the_same_in_two_processes(tmp_path):
  command = [*TRAIN, '--config.checkpoint_every=1', '--config.eval_every=1']
  one, two = (tmp_path / name for name in ('one', 'two'))
  finished([sys.executable, *command, '--runner=sharded', f'--workdir={one}'])
  finished(launched(2, *command, f'--workdir={two}'))
  for alone, together in zip(rows(one), rows(two), strict=True):
    assert alone.keys() == together.keys()
    for name, value in alone.items():
      assert together[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


def test_killed_processes_resume_bit_for_bit(tmp_path):
  command = [*TRAIN, '--config.epochs=6', '--config.checkpoint_every=1']
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  finished(launched(2, *command, f'--workdir={whole}'))
  process = start(
    launched(2, *command, f'--workdir={cut}'), start_new_session=True
  )
  wait_for_rows(cut, 30)
  os.killpg(process.pid, signal.SIGKILL)
  process.communicate()
  assert len(rows(cut)) < len(rows(whole))
  finished(launched(2, *command, f'--workdir={cut}', '--resume'))
  assert rows(cut) == rows(whole)


def wait_for_rows(workdir, step):
  until = time.monotonic() + 300
  while time.monotonic() < until:
    path = workdir / 'metrics.jsonl'
    if path.exists() and path.read_text().count('\n') > 2:
      if metrics.read(workdir)[-1]['step'] >= step:
        return
    time.sleep(0.2)
  raise AssertionError('the run does not start')


def test_one_killed_process_ends_the_others_with_its_name(tmp_path):
  command = [*TRAIN, '--config.epochs=2000', '--config.checkpoint_every=1']
  command.append(f'--workdir={tmp_path}/run')
  port = launch.free_port()
  started = [
    start(program) for program in launch.commands(command, n=4, port=port)
  ]
  wait_for_rows(tmp_path / 'run', 20)
  killed = time.monotonic()
  started[2].kill()
  started[2].communicate()
  for i in (0, 1, 3):
    out, _ = started[i].communicate(timeout=60)
    assert started[i].returncode != 0
    assert re.search(r'unhealthy \(stopped sending heartbeats\):\n2\n', out)
  assert time.monotonic() - killed < 60
  finished([sys.executable, '-c', LAST.format(tmp_path / 'run')])


# The last checkpoint is whole: its mean model can be read.
LAST = """
from configs import digits
from moniqua_jax import checkpoint, experiment
like = experiment.from_config(digits.get_config('moniqua4')).model.variables
checkpoint.mean_model('{}', like)
"""


def test_the_launcher_ends_all_when_one_fails(tmp_path):
  program = tmp_path / 'program.py'
  program.write_text(
    'import sys, time\n'
    "if sys.argv[-1] == '--process_id=1': sys.exit(7)\n"
    "print('waiting')\n"
    'time.sleep(100)\n'
  )
  began = time.monotonic()
  out = finished(launched(3, str(program)), status=7)
  assert time.monotonic() - began < 60
  assert 'process 1 ended with status 7; all are ended.' in out


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
  'workers that cannot be shared': (
    [
      '--num_processes=3',
      '--process_id=1',
      '--coordinator_address=localhost:1',
    ],
    '8 workers cannot be shared equally by 3 processes',
  ),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_has_one_line(name):
  arguments, message = MISTAKES[name]
  out = finished([sys.executable, *TRAIN, *arguments], status=2)
  assert message in out and len(out.splitlines()) == 1


def test_a_port_in_use_is_named():
  with socket.socket() as other:
    other.bind(('', 0))
    other.listen()
    port = other.getsockname()[1]
    with pytest.raises(ValueError, match='Address already in use'):
      initialize.join(f'localhost:{port}', 2, 0, workers=2)


JOIN = (
  'from moniqua_jax import joining; '
  "joining.join('localhost:{port}', 2, {i}, workers=2, timeout=5)"
)


def test_processes_that_do_not_come_are_not_waited_for():
  port = launch.free_port()
  command = [sys.executable, '-c', JOIN.format(port=port, i=1)]
  out = finished(command, status=2)
  assert f'nobody listens at localhost:{port}' in out
  command = [sys.executable, '-c', JOIN.format(port=port, i=0)]
  assert 'not all processes came' in finished(command, status=2)


def test_other_workers_are_refused_or_start_at_the_mean(tmp_path):
  first, second = f'--workdir={tmp_path}/8', f'--workdir={tmp_path}/4'
  finished([sys.executable, *TRAIN, first])
  fewer = [sys.executable, *TRAIN, '--config.workers=4']
  out = finished([*fewer, first, '--resume'], status=2)
  assert 'config.workers was 8 and is now 4' in out
  finished([*fewer, second, f'--start_from={tmp_path}/8'])
  at_mean, began = metrics.read(tmp_path / '4'), metrics.read(tmp_path / '8')
  assert at_mean[0]['train/loss'] < began[0]['train/loss'] / 2
