"""Our docstrings as Markdown: equations, doctests and sources stand out.

A docstring of the library is plain text. Lines that are set in are equations,
`>>>` begins a doctest, and the last paragraph names the source.
"""

import re
import textwrap

import griffe

_SECTION = re.compile(r'(Args|Attributes|Raises|Returns|Yields):$')
_SOURCE = re.compile(r'(Source|Sources|Reference|References):\s')


class Markdown(griffe.Extension):
  """Rewrites each docstring before it is parsed."""

  def on_object(self, *, obj, **kwargs):
    del kwargs
    if obj.docstring:
      obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
  """One docstring, paragraph after paragraph.

  Args:
    text: dedented, as `inspect.cleandoc` gives it.

  Returns:
    Markdown that griffe reads in the style of Google.
  """
  paragraphs = re.split(r'\n\s*\n', text.strip())
  return '\n\n'.join(map(_paragraph, _joined(paragraphs)))


def _joined(paragraphs):
  """Equations and doctests with blank lines in them are one."""
  joined = []
  for paragraph in paragraphs:
    if joined and paragraph.startswith('  ') and joined[-1].startswith('  '):
      joined[-1] += '\n\n' + paragraph
    else:
      joined.append(paragraph)
  return joined


def _paragraph(text):
  if text.startswith('>>>'):
    return _fenced(text, 'pycon')
  if text.startswith('  '):
    return _fenced(textwrap.dedent(text), 'text')
  text = text.replace(' -> ', ' → ')
  if _SECTION.match(text.splitlines()[0]):
    return text
  return _SOURCE.sub(r'**\1.** ', text, count=1)


def _fenced(text, language):
  return f'```{language}\n{text}\n```'
