"""The front page is short, and what it shows runs."""

import re
import subprocess

import jax
import numpy as np
import pytest

import moniqua_jax as mj
from tests import pages

LINES = 180  # five minutes
COMMANDS = pages.commands(pages.README)


def test_it_is_read_in_five_minutes():
  assert len(pages.README.read_text().splitlines()) <= LINES


def test_the_seven_lines_learn():
  (code,) = pages.fenced(pages.README, 'python')
  marks = re.findall(r'# (\d)$', code, flags=re.MULTILINE)
  assert marks == ['1', '2', '3', '4', '5', '6', '7']
  names = pages.names_after(pages.README)
  # Mean square of a fit to a linear target that all workers share.
  assert np.mean(names['loss']) < 0.1
  report = mj.report(names['opt_state'])
  assert report['gossip/messages'] == 1600 and not report['gossip/unreadable']
  x = jax.ShapeDtypeStruct((5,), np.float32)
  payload = jax.eval_shape(names['q'].encode, x, names['key'])
  assert payload.dtype == np.uint8 and mj.nbytes(payload) == 3 + 12


def test_its_targets_of_make_are_there():
  text = '\n'.join(pages.fenced(pages.README, 'bash'))
  targets = re.findall(r'\bmake ([\w-]+)', text)
  assert {'demo', 'test', 'test-all'} <= set(targets)
  for target in targets:
    dry = ['make', target, '--dry-run', 'PYTHON=true']
    done = subprocess.run(dry, cwd=pages.ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and '.venv' in done.stdout, done.stderr


def test_the_demo_installs_what_it_needs_and_reports_beside_its_runs():
  dry = ['make', 'demo', '--dry-run', '--always-make', 'PYTHON=true']
  text = subprocess.run(dry, cwd=pages.ROOT, capture_output=True).stdout
  assert b"--editable '.[train]'" in text and b'notebooks' not in text
  assert b'--out=runs/demo_report' in text


def test_what_it_installs_is_declared():
  project = (pages.ROOT / 'pyproject.toml').read_text()
  extras = {
    extra
    for page in pages.PAGES
    for extra in re.findall(r"pip install '\.\[(\w+)\]'", page.read_text())
  }
  assert 'train' in extras
  assert not [name for name in extras if f'\n{name} = [' not in project]
  assert '\nmoniqua-train = ' in project


@pytest.fixture(scope='module')
def shell(tmp_path_factory):
  return pages.shell(tmp_path_factory.mktemp('readme'))


def test_its_commands_run(shell):
  ours = [c for c in COMMANDS if not re.match('make|pip', c)]  # those: above
  assert len(ours) == 3
  for command in ours:
    shell(pages.short(command))
