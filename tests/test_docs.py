"""The documentation: its links, names and commands are right, its code runs."""

import os
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import pytest

from tests import helpers, test_quantizers

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
_FENCED = re.compile(r'^```(\w*).*?\n(.*?)^```', flags=re.DOTALL | re.MULTILINE)
_LOADED = re.compile(r'<(script|link|img|iframe)\b[^>]*(src|href)="(\w+:)?//')
every_page = pytest.mark.parametrize(
  'page', PAGES, ids=lambda page: str(page.relative_to(ROOT))
)


def fenced(page, language):
  return [
    code for name, code in _FENCED.findall(page.read_text()) if name == language
  ]


def prose(page):
  return _FENCED.sub('', page.read_text())


def anchors(page):
  """The ids of its headings, as GitHub and mkdocs make them."""
  titles = re.findall(r'^#+ (.*)$', prose(page), flags=re.MULTILINE)
  words = [re.sub(r'[^\w\- ]', '', title.lower()) for title in titles]
  return {title.strip().replace(' ', '-') for title in words}


@every_page
def test_relative_links_lead_to_files(page):
  for link in re.findall(r'\]\((?!\w+:)([^)\s]+)\)', prose(page)):
    path, _, anchor = link.partition('#')
    target = (page.parent / path).resolve() if path else page
    assert target.is_file() and target.is_relative_to(ROOT), link
    assert not anchor or anchor in anchors(target), link


@every_page
def test_files_that_it_names_are_there(page):
  for name in re.findall(r'`(\w+\.py|[\w.]+/[\w./]+\.[a-z]+)`', prose(page)):
    places = (ROOT, ROOT / 'moniqua_jax')
    assert any((place / name).is_file() for place in places), name
  for name in re.findall(r'`(results/[a-z]\w*)`', prose(page)):
    assert (ROOT / name).is_dir(), name


@every_page
def test_commands_name_what_is_there(page):
  shell = '\n'.join(fenced(page, 'bash'))
  text = '\n'.join([shell, *re.findall(r'`([^`\n]+)`', prose(page))])
  makefile = (ROOT / 'Makefile').read_text()
  for target in re.findall(r'\bmake ([\w-]+)', shell):
    assert f'\n{target}:' in makefile, target
  for path in re.findall(r'--config=([\w/]+\.py)', text):
    assert (ROOT / path).is_file(), path
  for package, rest in re.findall(r'-m (moniqua_jax|benchmarks)([\w.]*)', text):
    path = ROOT.joinpath(package, *rest.split('.'))
    main, module = path / '__main__.py', path.with_suffix('.py')
    assert main.is_file() or module.is_file(), package + rest


def test_every_page_is_in_the_navigation():
  listed = re.findall(r'(\S+\.md)$', (ROOT / 'mkdocs.yml').read_text(), re.M)
  pages = [str(page.relative_to(ROOT / 'docs')) for page in PAGES[1:]]
  assert sorted(listed) == sorted(pages)


def test_all_results_are_listed():
  text = (ROOT / 'docs/results.md').read_text()
  listed = re.findall(r'`results/([a-z]\w*)`', text)
  there = [path.name for path in (ROOT / 'results').iterdir() if path.is_dir()]
  assert sorted(listed) == sorted(there)


def names_after(page):
  """What is defined when the code of a page has run from top to bottom."""
  names = {}
  for code in fenced(ROOT / f'docs/{page}.md', 'python'):
    exec(compile(code, f'docs/{page}.md', 'exec'), names)
  return names


def test_the_code_of_the_quickstart_learns():
  names = names_after('quickstart')
  assert float(names['loss'].mean()) < 0.1


def test_the_code_of_topologies_runs():
  names_after('topologies')


@pytest.fixture(scope='module')
def extended():
  return names_after('extending')


@pytest.mark.parametrize('d', [1, 1000])
def test_the_quantizer_of_the_docs_passes_the_battery(extended, d, monkeypatch):
  monkeypatch.setitem(helpers.QUANTIZERS, 'fixed_range', extended['row'])
  test_quantizers.test_round_trip_is_within_its_bound('fixed_range', d)
  test_quantizers.test_payload_is_bytes_of_the_stated_number('fixed_range', d)


def test_the_quantizer_of_the_docs_is_the_same_everywhere(
  extended, monkeypatch
):
  monkeypatch.setitem(helpers.QUANTIZERS, 'fixed_range', extended['row'])
  test_quantizers.test_jit_changes_nothing('fixed_range')
  test_quantizers.test_vmap_is_the_loop('fixed_range')


@pytest.mark.parametrize('bad', [jnp.nan, jnp.inf, 17.0])
def test_the_quantizer_of_the_docs_says_what_it_cannot_send(extended, bad):
  quantizer = extended['row'][0]
  x = jnp.zeros(9).at[4].set(bad)
  payload = quantizer.encode(x, test_quantizers.KEY)
  assert not quantizer.inspect(payload, jnp.zeros(9)).readable


def test_the_site_builds_without_a_warning(tmp_path):
  pytest.importorskip('mkdocs')
  pytest.importorskip('mkdocstrings')
  command = [
    sys.executable,
    '-m',
    'mkdocs',
    'build',
    '--strict',
    '-d',
    tmp_path,
  ]
  env = os.environ | {'NO_MKDOCS_2_WARNING': '1'}
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True)
  assert done.returncode == 0, done.stderr.decode()
  for page in tmp_path.rglob('*.html'):
    text = page.read_text()
    assert not _LOADED.search(text), f'{page} asks another host'
