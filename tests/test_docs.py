"""The documentation: its links, names and commands are right, its code runs.

A check of all pages is one test that lists what fails, page by page.
"""

import contextlib
from importlib import metadata
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moniqua_jax as mj
from moniqua_jax import command_line, data
from moniqua_jax.launch import __main__ as launch
from tests import helpers, pages, test_quantizers

ROOT = pages.ROOT
PACKAGE = 'moniqua_jax'
TAKEN = {'name', 'd'}
MODULE = re.compile(r'-m (moniqua_jax|benchmarks)([\w.]*)')
_LOADED = re.compile(r'<(script|link|img|iframe)\b[^>]*(src|href)="(\w+:)?//')


def anchors(page):
  """The ids of its headings, as GitHub and mkdocs make them."""
  titles = re.findall(r'^#+ (.*)$', pages.prose(page), flags=re.MULTILINE)
  words = [re.sub(r'[^\w\- ]', '', title.lower()) for title in titles]
  return {title.strip().replace(' ', '-') for title in words}


def broken_links(page):
  for link in re.findall(r'\]\((?!\w+:)([^)\s]+)\)', pages.prose(page)):
    path, _, anchor = link.partition('#')
    target = (page.parent / path).resolve() if path else page
    if not (target.is_file() and target.is_relative_to(ROOT)):
      yield link
    elif anchor and anchor not in anchors(target):
      yield link


def missing_files(page):
  """Files and folders that its prose names and that are not there."""
  text = pages.prose(page)
  for name in re.findall(r'`(\w+\.py|[\w.]+/[\w./]+\.[a-z]+)`', text):
    if not any((place / name).is_file() for place in (ROOT, ROOT / PACKAGE)):
      yield name
  for name in re.findall(r'`(results/[a-z]\w*)`', text):
    if not (ROOT / name).is_dir():
      yield name
  for name in re.findall(r'`((?:\w+/)+)`', text):
    if not any((place / name).is_dir() for place in (ROOT, ROOT / PACKAGE)):
      yield name


def wrong_commands(page):
  """Targets of make, configs and modules that are not there."""
  blocks = '\n'.join(pages.fenced(page, 'bash'))
  quoted = '\n'.join(re.findall(r'`([^`]+)`', pages.prose(page)))
  makefile = (ROOT / 'Makefile').read_text()
  for target in re.findall(r'\bmake\s+([\w-]+)', f'{blocks}\n{quoted}'):
    if f'\n{target}:' not in makefile:
      yield f'make {target}'
  for name in re.findall(r'--config=([a-z][\w/.]*)', f'{blocks}\n{quoted}'):
    try:
      command_line.path(str(ROOT / name) if '/' in name else name)
    except ValueError as error:
      yield str(error)
  for package, rest in MODULE.findall(f'{blocks}\n{quoted}'):
    path = ROOT.joinpath(package, *rest.split('.'))
    main, module = path / '__main__.py', path.with_suffix('.py')
    if not (main.is_file() or module.is_file()):
      yield package + rest


def check(wrong, of):
  found = [
    f'{page.relative_to(ROOT)}: {what}' for page in of for what in wrong(page)
  ]
  assert not found, '\n'.join(found)


def test_no_link_leads_nowhere():
  check(broken_links, pages.PAGES + pages.RESULTS)


def test_files_and_folders_that_are_named_are_there():
  # The changelog names what has gone.
  now = [page for page in pages.PAGES if page.name != 'CHANGELOG.md']
  check(missing_files, now + pages.NOTEBOOKS)


def test_commands_name_what_is_there():
  check(wrong_commands, pages.PAGES + pages.NOTEBOOKS)


def test_every_page_is_in_the_navigation():
  listed = re.findall(
    r'([a-z]\S*\.md)$', (ROOT / 'mkdocs.yml').read_text(), flags=re.MULTILINE
  )
  there = [str(page.relative_to(ROOT / 'docs')) for page in pages.DOCS]
  assert sorted(listed) == sorted(there)


def test_all_results_are_listed():
  text = (ROOT / 'docs/results.md').read_text()
  listed = re.findall(r'^\| `results/([a-z]\w*)`', text, flags=re.MULTILINE)
  there = [path.name for path in (ROOT / 'results').iterdir() if path.is_dir()]
  assert sorted(listed) == sorted(there)


def test_the_citation_names_the_version_and_the_papers():
  yaml = pytest.importorskip('yaml')
  cited = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
  assert {'cff-version', 'message', 'title', 'authors'} <= cited.keys()
  urls = {reference['url'] for reference in cited['references']}
  front = re.findall(r'https://arxiv\.org/abs/[\d.]+', pages.README.read_text())
  assert urls == set(front) and len(urls) == 3
  assert str(cited['version']) == metadata.version('moniqua_jax')


@pytest.mark.parametrize('page', ['topologies', 'algorithms', 'smoothness'])
def test_the_code_of_a_page_runs(page):
  assert pages.names_after(ROOT / f'docs/{page}.md')


def test_the_code_about_data_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = pages.names_after(ROOT / 'docs/data.md')
  assert names['batch']['image'].shape == (8, 4, 8, 8, 3)
  for name, path in (('folder', 'IMAGES'), ('npz', 'images.npz')):
    made = getattr(data, name)(path)
    assert made.num_classes == 2 and len(made.train.labels) == 320


def test_the_code_of_the_quickstart_learns():
  names = pages.names_after(ROOT / 'docs/quickstart.md')
  assert np.mean(names['loss']) < 0.1


@pytest.fixture(scope='module')
def extended():
  return pages.names_after(ROOT / 'docs/extending.md')


def battery():
  """The tests of tests/test_quantizers.py that take a name, and at most d."""
  for name, test in vars(test_quantizers).items():
    takes = inspect.signature(test).parameters if callable(test) else {}
    if name.startswith('test_') and 'name' in takes and takes.keys() <= TAKEN:
      yield test, 'd' in takes


def test_the_quantizer_of_the_docs_passes_the_battery(extended, monkeypatch):
  monkeypatch.setitem(helpers.QUANTIZERS, 'fixed_range', extended['row'])
  tests = list(battery())
  assert len(tests) >= 5  # bound, bytes, jit, vmap, mean, ...
  for test, sized in tests:
    for d in (1, 1000) if sized else (None,):
      test('fixed_range', **({'d': d} if sized else {}))


def test_the_quantizer_of_the_docs_says_what_it_cannot_send(extended):
  quantizer = extended['row'][0]

  @jax.jit
  def readable(x):
    payload = quantizer.encode(x, test_quantizers.KEY)
    return quantizer.inspect(payload, jnp.zeros(9)).readable

  x = np.zeros(9, np.float32)
  assert readable(x)
  for bad in (np.nan, np.inf, 17.0):
    x[4] = bad
    assert not readable(x)


def test_the_algorithm_of_the_docs_keeps_the_mean_and_learns(extended):
  """Least squares: its optimum is the mean of the workers' targets."""
  tx = extended['adapt_then_combine'](
    mj.ring(8), mj.moniqua(4.0, 8), axis_name='workers', key=jax.random.key(0)
  )

  def step(x, state, target, step):
    u = -0.1 * (x - target)
    updates, state = tx.update(u, state, x, step=step)
    return x + updates, state, u

  step = jax.jit(mj.simulated(step, (0, 0, 0, None)))
  target = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
  x = np.zeros((8, 3), np.float32)
  state = mj.simulated(tx.init, (0,))(x)
  for k in range(100):
    moved, state, u = step(x, state, target, np.int32(k))
    np.testing.assert_allclose(
      np.mean(moved, 0), np.mean(x + u, 0), rtol=0, atol=1e-6
    )
    x = np.asarray(moved)
  assert bool(state.heard.seen.readable.all())
  np.testing.assert_allclose(x.mean(0), target.mean(0), rtol=0, atol=1e-3)
  assert np.ptp(x, axis=0).max() < 0.5 * np.ptp(target, axis=0).max()


def test_the_site_builds_without_a_warning(tmp_path):
  pytest.importorskip('mkdocs')
  pytest.importorskip('mkdocstrings')
  command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-d']
  env = os.environ | {'NO_MKDOCS_2_WARNING': '1'}
  done = subprocess.run(
    [*command, tmp_path], cwd=ROOT, env=env, capture_output=True
  )
  assert done.returncode == 0, done.stderr.decode()
  for page in tmp_path.rglob('*.html'):
    text = page.read_text()
    assert not _LOADED.search(text), f'{page} asks another host'
  read = lambda page: (tmp_path / page / 'index.html').read_text()
  assert 'cifar10_cpu/budget.png' in read('.')
  for notebook in (ROOT / 'colabs').glob('*.ipynb'):
    assert f'href="../colabs/{notebook.stem}/"' in read('notebooks')
    text = read(f'colabs/{notebook.stem}')
    assert '<h1' in text and '<pre' in text
    pictures = re.findall(r'src="((?!\w+:)[^"]*\.png)"', text)
    for picture in pictures:
      assert (tmp_path / 'colabs' / notebook.stem / picture).is_file()
    if importlib.util.find_spec('latex2mathml'):
      assert text.count('<math') >= 1 and '$$' not in text
  for page in (tmp_path / 'results').rglob('index.html'):
    before, _, after = page.read_text().partition('<h1')
    assert after and '<table' not in before, f'{page} begins with its table'
    assert '<p>' in after.partition('<table')[0], f'{page} says no sentence'


def with_commands(page):
  return [
    c for c in pages.commands(page) if re.search('^python|^mpi|&& python', c)
  ]


@pytest.fixture(scope='module')
def shell(tmp_path_factory):
  folder = tmp_path_factory.mktemp('docs')
  rows = np.random.default_rng(0).normal(size=(60, 4))
  lines = (
    f'{1 if sum(row) > 0 else -1} '
    + ' '.join(f'{j}:{value:.3f}' for j, value in enumerate(row, 1))
    for row in rows
  )
  with contextlib.chdir(folder):
    pages.names_after(ROOT / 'docs/data.md')  # writes what its commands read
  (folder / 'DATA').mkdir()
  (folder / 'DATA' / 'a8a').write_text('\n'.join(lines))
  mine = pages.fenced(ROOT / 'docs/your_own.md', 'python')[0]
  (folder / 'mine.py').write_text(mine)
  return pages.shell(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
  'page',
  [p for p in pages.DOCS if with_commands(p)],
  ids=lambda page: page.stem,
)
def test_the_commands_of_a_page_run(shell, page):
  for command in with_commands(page):
    short = pages.short(command)
    if command.startswith('mpi'):
      if shutil.which('mpiexec', path=pages.BIN) is None:
        continue
      short = short.replace('-n 8', '-n 2') + ' --config.workers=2'
    if address := re.search(r'HOST:PORT|10\.0\.0\.1:\d+', short):
      # Two of the processes, here.
      here = f'localhost:{launch.free_port()}'
      short = short.replace(address.group(), here)
      other = short.replace('process_id=0', 'process_id=1')
      short = f'{other} & {short} && wait'
    shell(short + (pages.REFUSED if pages.REFUSED in command else ''))
