"""Binary data sets as dense NumPy arrays: LIBSVM files, and two embedded ones.

A line is 'label index:value index:value ...', what follows a # is a comment:
https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/.
"""

import bz2
import codecs
from collections.abc import Callable, Sequence
import gzip
import io
import lzma
import os
import pathlib
import zlib

import numpy as np

from moniqua_jax import extras

LARGEST = 2**29  # values of a dense matrix, 4 GiB

# By what a file begins with, whatever it is called.
_PACKED: dict[bytes, Callable] = {
  b'BZh': bz2.decompress,
  b'\x1f\x8b': gzip.decompress,
  b'\xfd7zXZ\x00': lzma.decompress,
}
_UNKNOWN = {b'PK\x03\x04': 'zip', b'\x28\xb5\x2f\xfd': 'zstd', b'7z': '7z'}
_MARKS = {codecs.BOM_UTF16_LE: 'utf-16', codecs.BOM_UTF16_BE: 'utf-16'}


def read(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
  """A LIBSVM file of two classes.

    label = -1 for the smaller of the two in the file, +1 for the larger

  Indices ascend within a line. They count from 1, or from 0 if the file has an
  index 0 anywhere. A line without features is a row of zeros; blank lines are
  skipped. The file is plain, or of bzip2, gzip or xz; `sklearn` parses.

  >>> path = getfixture('tmp_path') / 'toy'
  >>> _ = path.write_text('1 1:0.5 3:2  # a comment\\n2 2:-1\\n')
  >>> [array.tolist() for array in read(path)]
  [[[0.5, 0.0, 2.0], [0.0, -1.0, 0.0]], [-1.0, 1.0]]
  """
  features, labels = _read(path)
  return features, _signs(path, labels)


def read_targets(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
  """The same, of a file of numbers to be predicted; of two classes as `read`.

  >>> path = getfixture('tmp_path') / 'toy'
  >>> _ = path.write_text('0.5 1:1\\n-2 1:2\\n7 1:3\\n')
  >>> read_targets(path)[1].tolist()
  [0.5, -2.0, 7.0]
  """
  features, targets = _read(path)
  if len(np.unique(targets)) == 2:
    return features, _signs(path, targets)
  return features, targets


def _read(path) -> tuple[np.ndarray, np.ndarray]:
  numbers, rows = _rows(path)
  try:
    sparse, labels = _parsed(rows)
  except (ValueError, OverflowError):
    bad = _first_unparsable(rows)
    raise ValueError(
      f'{path}, line {numbers[bad]}: {_excerpt(rows[bad])} is not '
      "'label index:value index:value ...' with ascending indices."
    ) from None
  _require_finite(path, numbers, rows, sparse, labels)
  if not sparse.nnz:
    raise ValueError(f'{path} has labels but no features.')
  n, d = sparse.shape
  if n * d > LARGEST:
    raise ValueError(
      f'{path}: {n} rows of {d} features are {n * d / 2**27:.0f} GiB when '
      'dense, above 4; is the largest index right?'
    )
  return sparse.toarray(), labels


def breast_cancer() -> tuple[np.ndarray, np.ndarray]:
  """The breast cancer data embedded in scikit-learn; +1 is benign.

  Returns features f64[569, 30]; labels f64[569], each -1 or +1.

  Source: Wolberg, Mangasarian, Street and Street, UCI Machine Learning
  Repository, 1995, as `sklearn.datasets.load_breast_cancer` has it.
  """
  with extras.needed('train'):
    from sklearn.datasets import load_breast_cancer  # slow

  features, labels = load_breast_cancer(return_X_y=True)
  return features, 2.0 * labels - 1.0


def digits() -> tuple[np.ndarray, np.ndarray]:
  """The handwritten digits embedded in scikit-learn; +1 is an even digit.

  Returns features f64[1797, 64], pixels from 0 to 16; labels f64[1797], each
  -1 or +1.

  Source: Alpaydin and Kaynak, UCI Machine Learning Repository, 1998; its test
  part, as `sklearn.datasets.load_digits` has it.
  """
  with extras.needed('train'):
    from sklearn.datasets import load_digits  # slow

  features, labels = load_digits(return_X_y=True)
  return features, np.where(labels % 2 == 0, 1.0, -1.0)


def _rows(path) -> tuple[list[int], list[bytes]]:
  try:
    data = _unpacked(pathlib.Path(path).expanduser())
  except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
    reason = getattr(error, 'strerror', None) or error
    raise ValueError(f'{path} cannot be read: {reason}.') from None
  lines = data.splitlines()
  contents = (line.split(b'#', 1)[0].strip() for line in lines)
  numbered = [(k, row) for k, row in enumerate(contents, 1) if row]
  if not numbered:
    raise ValueError(f'{path} is empty; a LIBSVM file has a row per line.')
  return [k for k, _ in numbered], [row for _, row in numbered]


def _unpacked(path: pathlib.Path) -> bytes:
  data = path.read_bytes()
  for begin, kind in _UNKNOWN.items():
    if data.startswith(begin):
      raise ValueError(f'it is packed by {kind}; unpack it first')
  packed = [each for begin, each in _PACKED.items() if data.startswith(begin)]
  if path.suffix in ('.bz2', '.gz', '.xz') and not packed:
    raise ValueError('it is not packed, as its name says')
  for unpack in packed:
    data = unpack(data)
  for mark, encoding in _MARKS.items():
    if data.startswith(mark):
      data = data.decode(encoding).encode()
  return data.removeprefix(codecs.BOM_UTF8)


def _parsed(rows: Sequence[bytes]):
  with extras.needed('train'):
    from sklearn.datasets import load_svmlight_file  # slow

  return load_svmlight_file(io.BytesIO(b'\n'.join(rows)))


def _first_unparsable(rows: Sequence[bytes]) -> int:
  # The parser does not say where it stopped: halves find it in two more reads.
  low, high = 0, len(rows)
  while high - low > 1:
    middle = (low + high) // 2
    try:
      _parsed(rows[low:middle])
      low = middle
    except (ValueError, OverflowError):
      high = middle
  return low


def _excerpt(row: bytes) -> str:
  text = row.decode(errors='replace')
  return repr(text if len(text) <= 40 else text[:37] + '...')


def _require_finite(path, numbers, rows, sparse, labels):
  values = np.flatnonzero(~np.isfinite(sparse.data))
  owners = np.searchsorted(sparse.indptr, values, side='right') - 1
  bad = np.concatenate([owners, np.flatnonzero(~np.isfinite(labels))])
  if bad.size:
    i = bad.min()
    raise ValueError(
      f'{path}, line {numbers[i]}: {_excerpt(rows[i])} has a number that is '
      'not finite.'
    )


def _signs(path, labels: np.ndarray) -> np.ndarray:
  classes = np.unique(labels)
  if len(classes) != 2:
    first = ', '.join(f'{c:g}' for c in classes[:5])
    dots = ', ...' if len(classes) > 5 else ''
    raise ValueError(
      f'{path} has {len(classes)} different labels ({first}{dots}); '
      'a binary problem has 2.'
    )
  return np.where(labels == classes[1], 1.0, -1.0)
