"""Files of the repository that the pages link to become files of the site.

A page says `../results/digits/table.md`, which is right where the page stands
in the repository. docs/ is the root of the site, so a link that leaves it loses
the `../` that leaves, a link of such a file back into docs/ loses the `docs/`,
and the file is added to the site under its own path.
"""

import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
LINK = re.compile(r'(?<=\]\()(?!\w+:|#|/)[^)#\s]+')


def on_files(files, config):
  """Adds what is linked to, and what that links to."""
  waiting = [(f.src_uri, f.abs_src_path) for f in files.documentation_pages()]
  while waiting:
    page, path = waiting.pop()
    for link in LINK.findall(pathlib.Path(path).read_text()):
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
  here = posixpath.dirname(page.file.src_uri)

  def moved(link):
    name = _inside(page.file.src_uri, link[0])
    return posixpath.relpath(name, here or '.')

  return LINK.sub(moved, markdown)


def _inside(page, link) -> str:
  """The path of a link's file, from the root of the site, which is docs/."""
  path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
  return path.removeprefix('../').removeprefix('docs/')
