"""Files of the repository that the pages link to become files of the site.

A page says `../results/digits/table.md`, which is right where the page stands
in the repository. docs/ is the root of the site, so a link that leaves it loses
the `../` that leaves, a link of such a file back into docs/ loses the `docs/`,
and the file is added to the site under its own path. A page of results/ begins
there with its question as a title, and with its figure.
"""

import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
LINK = re.compile(r'(?<=\]\()(?!\w+:|#|/)[^)#\s]+')
QUESTION = re.compile(r'^\| `(results/\w+)` \| (.*?) \|', re.MULTILINE)


def on_files(files, config):
  """Adds what is linked to, and what that links to."""
  waiting = [(f.src_uri, f.abs_src_path) for f in files.documentation_pages()]
  while waiting:
    page, path = waiting.pop()
    for link in LINK.findall(_titled(page, pathlib.Path(path).read_text())):
      name = _inside(page, link)
      target = ROOT / name
      if files.get_file_from_path(name) is None and target.is_file():
        files.append(File.generated(config, name, abs_src_path=str(target)))
        if name.endswith('.md'):
          waiting.append((name, str(target)))
  return files


def on_page_markdown(markdown, page, **kwargs):
  """Links as the site has them."""
  del kwargs
  markdown = _titled(page.file.src_uri, markdown)
  here = posixpath.dirname(page.file.src_uri)

  def moved(link):
    name = _inside(page.file.src_uri, link[0])
    return posixpath.relpath(name, here or '.')

  return LINK.sub(moved, markdown)


def _titled(page, markdown) -> str:
  """The text of a page of results, with a title, a sentence and its figure."""
  folder = '/'.join(page.split('/')[:2])
  questions = dict(QUESTION.findall((ROOT / 'docs/results.md').read_text()))
  if folder not in questions or markdown.startswith('# '):
    return markdown
  name = posixpath.basename(folder).replace('_', ' ')
  up = posixpath.relpath('docs/results.md', posixpath.dirname(page))
  question = questions[folder].rstrip('?')
  picture = '![The runs of this page](figure.png)\n\n'
  return (
    f'# Results: {name}\n\nAbout: {question}. [Results]({up}) '
    f'tells what came of it; `{folder}` holds the numbers of every run.\n\n'
    + picture * (ROOT / page).with_name('figure.png').exists()
    + markdown
  )


def _inside(page, link) -> str:
  """The path of a link's file, from the root of the site, which is docs/."""
  path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
  return path.removeprefix('../').removeprefix('docs/')
