"""What the README shows runs."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text()
BIN = pathlib.Path(sys.executable).parent
SHORT = {  # what makes a run of a config short enough for a test
  'configs/digits.py': '--config.epochs=2',
  'configs/smoothness_digits.py': '--config.epochs=2',
  'configs/smoothness.py': (
    '--config.iterations=20 --config.seeds=1 --config.clock=False '
    """--config.methods="('GD','DIANA+ varying')" """
  ),
}
REFUSED = '# refused'  # behind a command that is there to be refused


def commands():
  """Those of its shell blocks, each in one line."""
  blocks = re.findall(r'```bash\n(.*?)```', TEXT, flags=re.DOTALL)
  text = re.sub(r'\\\n\s*', '', '\n'.join(blocks))
  return [line for line in text.splitlines() if re.match('\\w', line)]


def short(command):
  given = [more for config, more in SHORT.items() if f'={config}:' in command]
  program, *_ = command.split('  #')
  return ' '.join([program, *given])


def test_the_six_lines_run(capsys):
  code, *more = re.findall(r'```python\n(.*?)```', TEXT, flags=re.DOTALL)
  names = {}
  exec(compile(code, 'README.md', 'exec'), names)
  assert len(more) == 2
  for piece in more:  # they go on from the first
    exec(compile(piece, 'README.md', 'exec'), names)
    init = names['mj'].simulated(names['tx'].init, (0,))
    init(
      {'w': names['jnp'].zeros((8, 1024, 2))}
      if piece is more[0]
      else names['params']
    )
  loss, nbytes = capsys.readouterr().out.split()
  # Mean square of a fit to a linear target that 8 workers share; 3 + 12 bytes.
  assert float(loss) < 0.1 and int(nbytes) == 15
  marks = re.findall(r'# (\d)$', code, flags=re.MULTILINE)
  assert marks == ['1', '2', '3', '4', '5', '6']


def test_every_file_that_it_names_is_there():
  for name in re.findall(r'`((?:[\w/]+/)?\w+\.py)`', TEXT):
    assert list(ROOT.glob(name)) or list((ROOT / 'moniqua_jax').glob(name)), (
      name
    )


def test_its_commands_name_real_configs_and_targets():
  makefile = (ROOT / 'Makefile').read_text()
  for target in re.findall(r'^make (\S+)', TEXT, flags=re.MULTILINE):
    assert f'\n{target}:' in makefile
  for path in re.findall(r'--config=([\w/]+\.py)', TEXT):
    assert (ROOT / path).is_file()


def test_its_targets_of_make_are_there():
  for command in (c for c in commands() if c.startswith('make ')):
    dry = [*command.split('#')[0].split(), '--dry-run', 'PYTHON=true']
    done = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and '.venv' in done.stdout, done.stderr


def test_what_it_installs_is_declared():
  (extra,) = re.findall(r"^pip install 'moniqua_jax\[(\w+)\]'", TEXT, re.M)
  assert f'\n{extra} = [' in (ROOT / 'pyproject.toml').read_text()


@pytest.fixture(scope='module')
def shell(tmp_path_factory):
  """Runs a command line as somebody would who has followed the README so far.

  Its folders are in a temporary one; runs of a config are short.
  """
  tmp = tmp_path_factory.mktemp('readme')
  rows = np.random.default_rng(0).normal(size=(60, 4))
  data = (
    f'{1 if sum(row) > 0 else -1} '
    + ' '.join(f'{j}:{value:.3f}' for j, value in enumerate(row, 1))
    for row in rows
  )
  (tmp / 'data').mkdir()
  (tmp / 'data' / 'a8a').write_text('\n'.join(data))
  env = os.environ | {
    'PATH': f'{BIN}:{os.environ["PATH"]}',
    'JAX_COMPILATION_CACHE_DIR': str(tmp / 'compiled'),
    'OMPI_ALLOW_RUN_AS_ROOT': '1',
    'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1',
    'PRTE_MCA_rmaps_default_mapping_policy': ':oversubscribe',
  }
  env.pop('XLA_FLAGS', None)  # of the tests: eight devices

  def run(command):
    command = command.replace('runs/', f'{tmp}/').replace('DATA', f'{tmp}/data')
    return subprocess.run(
      command, shell=True, cwd=ROOT, env=env, capture_output=True, text=True
    )

  return run


def run_by_others(command):
  """make, pip: above. Without a cluster: two of the processes, below."""
  return re.match('make|pip|srun|mpi', command) or 'HOST:PORT' in command


def test_its_commands_run(shell):
  demo = commands()[2].replace('runs/moniqua4', 'runs/demo/moniqua4')
  assert shell(short(demo)).returncode == 0  # in the place of `make demo`
  for command in (c for c in commands() if not run_by_others(c)):
    done = shell(short(command))
    assert (done.returncode != 0) == (REFUSED in command), (
      f'{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}'
    )


@pytest.mark.skipif(shutil.which('mpiexec', path=BIN) is None, reason='no MPI')
def test_its_commands_under_mpi_run(shell):
  for command in (c for c in commands() if c.startswith('mpi')):
    program, *_ = command.split('  #')
    program = program.replace('-n 8', '-n 2').replace('=...', '=runs/under_mpi')
    fewer = '--config.epochs=1 --config.workers=2'
    done = shell(f'{program} {fewer}')
    assert done.returncode == 0, (
      f'{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}'
    )


def test_its_command_for_each_machine_runs(shell):
  (command,) = (c for c in commands() if 'HOST:PORT' in c)
  command = short(command).replace('HOST:PORT', 'localhost:17493')
  command = command.replace('SHARED/', 'runs/')
  both = (
    f'{command.replace("process_id=0", "process_id=1")} & {command} && wait'
  )
  done = shell(both)
  assert done.returncode == 0, f'{done.stdout[-2000:]}\n{done.stderr[-2000:]}'
