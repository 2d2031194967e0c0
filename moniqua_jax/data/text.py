"""Text to be continued: windows of documents, and what stands after them.

The last tenth of each document is held out. What is left of all documents
stands in one row, of which window k has the symbols from k T to k T + T, one
more than the model sees: each symbol is to be foretold once in a pass. In
training a window is moved by up to half its length.
"""

from collections.abc import Sequence
import functools
import glob
import hashlib
import lzma
import pathlib
from typing import NamedTuple
import zlib

import numpy as np

from moniqua_jax.data.base import Dataset, Source

__all__ = ['text']

HELD_OUT = 0.1  # of each document, at its end
PACKED = 10**6  # characters that compressors get; lzma takes two seconds for it


class Text(NamedTuple):
  """What the symbols of a text mean.

  Attributes:
    symbols: bytes or characters, by their number.
    per_character: symbols for a character of what is held out.
    sha256: of the text, all documents.
    origin: where it is from.
    held_out: the ends of all documents, joined.
  """

  symbols: tuple
  per_character: float
  sha256: str
  origin: str
  held_out: str

  def noted(self) -> dict:
    """What run.json says of the text, and what compressors make of it."""
    noted = {'origin': self.origin, 'sha256': self.sha256}
    return noted | {'bits_per_character': self.packed()}

  def packed(self) -> dict[str, float]:
    """Bits a character that compressors need for the first PACKED held out."""
    first = self.held_out[:PACKED]
    whole = first.encode()
    sizes = {
      'zlib': len(zlib.compress(whole, 9)),
      'lzma': len(lzma.compress(whole)),
    }
    many = max(1, len(first))
    return {name: 8 * size / many for name, size in sizes.items()}

  def shown(self, tokens: Sequence[int]) -> str:
    """The symbols of these numbers as text."""
    symbols = [self.symbols[token] for token in tokens]
    if isinstance(self.symbols[0], bytes):
      return b''.join(symbols).decode('utf-8', 'replace')
    return ''.join(symbols)


def text(
  path: str | None = None, *, window: int = 128, symbols: str = 'bytes'
) -> Dataset:
  """Documents of a folder or a file, or what Python's `help` knows.

  A dataset of windows i32[window + 1], labelled by document: `sorted_by_label`
  gives workers documents of their own, but for windows at their borders.

  Args:
    path: a UTF-8 file, one document, or a folder of them, with what is below
      it and not hidden; by default the topics of `help` in the Python in use,
      79 of them.
    window: symbols that the model sees, T.
    symbols: 'bytes', of which there are 256, or 'characters', those of the
      text.

  Raises:
    ValueError: there is no such file, it is not UTF-8, or it is too short.

  >>> dataset = text(window=64)
  >>> dataset.train.read([0])[0].shape, dataset.num_classes
  ((1, 3), 256)
  >>> dataset.preprocess(dataset.train.read([0])[0]).shape
  (1, 65)

  Source: the topics are of https://docs.python.org, PSF License Version 2.
  """
  if type(window) is not int or window < 1:
    raise ValueError(f'window={window!r}; it must be 1 or more, an int.')
  if symbols not in SYMBOLS:
    raise ValueError(f'symbols={symbols!r}; choose from {sorted(SYMBOLS)}.')
  documents, origin = _topics() if path is None else _folder(path)
  known, number = SYMBOLS[symbols](documents)
  cut = [int(len(document) * (1 - HELD_OUT)) for document in documents]
  parts = list(zip(documents, cut, strict=True))
  train = [number(document[:end]) for document, end in parts]
  ends = [document[end:] for document, end in parts]
  test = [number(end) for end in ends]
  held_out = ''.join(ends)
  about = Text(
    known,
    sum(map(len, test)) / max(1, len(held_out)),
    hashlib.sha256('\0'.join(documents).encode()).hexdigest(),
    origin,
    held_out,
  )
  return _dataset(train, test, window, about)


def _dataset(train, test, window, about) -> Dataset:
  tokens = np.concatenate([*train, *test])
  seen = sum(map(len, train))
  rows = np.arange(window + 1)

  def cut(starts):
    return tokens[starts[:, 0, None] + rows].astype(np.int32)

  def augment(rng, starts):
    start, least, most = np.asarray(starts).T
    by = rng.integers(-(window // 2), window // 2 + 1, len(start))
    return cut(np.clip(start + by, least, most)[:, None])

  end = f'the held-out end of {about.origin}'
  return Dataset(
    train=_windows(train, 0, window, about.origin),
    test=_windows(test, seen, window, end),
    num_classes=len(about.symbols),
    shape=(window,),
    augment=augment,
    preprocess=cut,
    field='text',
    text=about,
  )


def _windows(parts, begin, window, name) -> Source:
  """Windows of one row of symbols: (start, first start, last start), document.

  The document is that in which the window starts.
  """
  ends = np.cumsum([len(part) for part in parts])
  count = (int(ends[-1]) - 1) // window
  if count < 1:
    raise ValueError(
      f'{name} has {ends[-1]} symbols; a window of {window} takes '
      f'{window + 1}: take a longer text, or a shorter window.'
    )
  starts = window * np.arange(count)
  labels = np.searchsorted(ends, starts, side='right').astype(np.int32)
  bounds = np.broadcast_to([begin, begin + ends[-1] - window - 1], (count, 2))
  rows = np.column_stack([begin + starts, bounds])
  return Source(lambda indices: (rows[indices], labels[indices]), labels)


# ------------------------------------------------------------------- symbols


def _bytes(documents):
  del documents
  known = tuple(bytes([value]) for value in range(256))
  return known, lambda part: np.frombuffer(part.encode(), np.uint8)


def _characters(documents):
  known = tuple(sorted(set().union(*documents)))
  numbers = {symbol: number for number, symbol in enumerate(known)}
  number = lambda part: np.array([numbers[c] for c in part], np.int32)
  return known, number


SYMBOLS = {'bytes': _bytes, 'characters': _characters}


# ----------------------------------------------------------------- documents


@functools.cache
def _topics() -> tuple[list[str], str]:
  """What `help` of the Python in use says of its topics, in their order."""
  from pydoc_data import topics  # half a megabyte of source

  return [*topics.topics.values()], 'pydoc_data.topics'


def _folder(path) -> tuple[list[str], str]:
  """The file, or all files below the folder, by their names' order."""
  if path == '':  # not that one is in, as of a variable that is not set
    raise ValueError(
      "path='' is no file, and no folder of files; None, the default, is the "
      'text that comes with Python.'
    )
  root = pathlib.Path(path).expanduser()
  files = [root] if root.is_file() else _below(root)
  if not files:
    raise ValueError(f'path={path!r} is no file, and no folder of files.')
  documents = []
  for file in files:
    try:
      documents.append(file.read_text('utf-8-sig'))
    except UnicodeDecodeError as error:
      raise ValueError(f'{file} is not UTF-8: {error}.') from error
  return documents, str(path)


def _below(root: pathlib.Path) -> list[pathlib.Path]:
  """All files that are not hidden, behind links to folders too, each once."""
  names = glob.glob('**', root_dir=root, recursive=True)
  found: dict[pathlib.Path, pathlib.Path] = {}
  for file in sorted(root / name for name in names):
    if file.is_file():
      found.setdefault(file.resolve(), file)  # links may lead round
  return [*found.values()]
