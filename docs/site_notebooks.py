"""The notebooks of colabs/ become pages of the site, as they were executed.

A page links to `../colabs/NAME.ipynb`, which is right in the repository; on the
site that is a page. Formulas become MathML, which browsers draw by themselves.
"""

import pathlib
import re

from mkdocs.structure.files import File

try:
  from latex2mathml import converter
except ImportError:  # formulas stay as they are written
  converter = None

FOLDER = pathlib.Path(__file__).parents[1] / 'colabs'
FORMULA = re.compile(r'\$\$(.+?)\$\$|(?<![\\$])\$([^$\n]+?)\$', re.DOTALL)
LINK = re.compile(r'(\]\([^)\s]*colabs/\w+)\.ipynb\)')


def on_files(files, config):
  """Adds a page a notebook, and its pictures."""
  import nbconvert
  import nbformat

  exporter = nbconvert.MarkdownExporter()
  for path in sorted(FOLDER.glob('*.ipynb')):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
      if cell.cell_type == 'markdown':
        cell.source = FORMULA.sub(_formula, cell.source)
    name = path.stem
    resources = {'unique_key': name, 'output_files_dir': f'{name}_files'}
    text, made = exporter.from_notebook_node(notebook, resources)
    for picture, data in made['outputs'].items():
      file = File.generated(config, f'colabs/{picture}', content=data)
      files.append(file)
    files.append(File.generated(config, f'colabs/{name}.md', content=text))
  return files


def on_page_markdown(markdown, **kwargs):
  """Leads to the pages."""
  del kwargs
  return LINK.sub(r'\1.md)', markdown)


def _formula(match) -> str:
  """Writes a formula in MathML, none of which is Markdown."""
  if converter is None:
    return match[0]
  block = match[1] is not None
  display = 'block' if block else 'inline'
  text = converter.convert((match[1] or match[2]).strip(), display=display)
  for letter in '*_\\[]':
    text = text.replace(letter, f'&#{ord(letter)};')
  text = text.replace('\n', ' ')
  if block:
    return f'\n\n<div class="formula">{text}</div>\n\n'
  return f'<span>{text}</span>'
