"""The Markdown files of the repository, their code, and a place to run it."""

import os
import pathlib
import re
import subprocess
import sys

from tests import programs

ROOT = programs.ROOT
README = ROOT / 'README.md'
DOCS = sorted((ROOT / 'docs').rglob('*.md'))
PAGES = [*sorted(ROOT.glob('*.md')), *DOCS]
RESULTS = sorted((ROOT / 'results').rglob('*.md'))
NOTEBOOKS = sorted((ROOT / 'colabs').glob('*.py'))
BIN = pathlib.Path(sys.executable).parent
REFUSED = '# refused'  # marks a command that must fail
SHORT = {  # what makes a run of a config short enough for a test
  'digits': '--config.epochs=2',
  'configs/digits.py': '--config.epochs=2',
  'configs/smoothness_digits.py': '--config.epochs=2',
  'configs/smoothness.py': (
    '--config.iterations=20 --config.seeds=1 --config.clock=False '
    """--config.methods="('GD','DIANA+ varying')" """
  ),
}
_FENCED = re.compile(r'^```(\w*).*?\n(.*?)^```', flags=re.DOTALL | re.MULTILINE)


def fenced(page, language) -> list[str]:
  """The fenced blocks of one language."""
  return [
    code for name, code in _FENCED.findall(page.read_text()) if name == language
  ]


def prose(page) -> str:
  """The text without its fenced blocks."""
  return _FENCED.sub('', page.read_text())


def commands(page) -> list[str]:
  """The shell commands, each in one line; comments kept."""
  text = re.sub(r'\\\n\s*', '', '\n'.join(fenced(page, 'bash')))
  text = re.sub(r'^(\w+=\S+)\n', r'\1 && ', text, flags=re.MULTILINE)
  return [line for line in text.splitlines() if re.match(r'\w', line)]


def short(command) -> str:
  """The command without its comment, its run cut short."""
  program, *_ = command.split('  #')
  more = [more for config, more in SHORT.items() if f'={config}:' in program]
  return ' '.join([program, *more])


def names_after(page) -> dict:
  """What is defined when the Python code has run from top to bottom."""
  names = {}
  for code in fenced(page, 'python'):
    exec(compile(code, str(page), 'exec'), names)
  return names


def shell(folder):
  """Runs command lines in `folder`, made to look like a clone to them."""
  for name in ('train.py', 'configs', 'moniqua_jax'):
    (folder / name).symlink_to(ROOT / name)
  (folder / 'results').mkdir()
  kept = 'results/cifar10_cpu'
  (folder / kept).symlink_to(ROOT / kept)
  env = (
    os.environ
    | programs.ENVIRONMENT
    | {
      'PATH': f'{BIN}:{os.environ["PATH"]}',
      'OMPI_ALLOW_RUN_AS_ROOT': '1',
      'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1',
      'PRTE_MCA_rmaps_default_mapping_policy': ':oversubscribe',
    }
  )
  env.pop('XLA_FLAGS', None)  # set by other tests

  def run(command):
    done = subprocess.run(
      command, shell=True, cwd=folder, env=env, capture_output=True, text=True
    )
    said = f'{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}'
    assert (done.returncode != 0) == (REFUSED in command), said

  return run
