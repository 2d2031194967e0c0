"""How a program ends: by a mistake or a failure in one line, or unread."""

import contextlib
import errno
import io
import os
import sys

from moniqua_jax import extras

_ROOM, _LEAVE = 'Make room there', 'See that it may be read and written'
_FREE = 'Move away what is in its place'
_WAYS = {
  errno.ENOSPC: _ROOM,
  errno.EDQUOT: _ROOM,
  errno.EFBIG: _ROOM,
  errno.EROFS: _LEAVE,
  errno.EACCES: _LEAVE,
  errno.EPERM: _LEAVE,
  errno.ENOTDIR: _FREE,
  errno.EISDIR: _FREE,
  errno.EEXIST: _FREE,
  errno.EIO: 'Put back a copy that is whole',
}


@contextlib.contextmanager
def one_line_errors():
  """Turns a `ValueError` into one line on stderr and exit status 2.

  A missing extra as well; an `OSError`, which is no mistake, has status 1, and
  Ctrl-C 130.

  >>> with one_line_errors():
  ...   pass
  """
  legible()
  try:
    yield
  except (ValueError, extras.MissingExtra, OSError) as error:
    sys.exit(told(error))
  except KeyboardInterrupt:
    print('interrupted.', file=sys.stderr)
    sys.exit(130)


def told(error: Exception) -> int:
  """Prints a mistake or a failure as one line; returns the exit status."""
  if not isinstance(error, OSError):
    print('error:', ' '.join(str(error).splitlines()), file=sys.stderr)
    return 2
  again = 'then give the same command again.'
  print(f'error: {failure(error)}, {again}', file=sys.stderr)
  # A file that is not there was named by who gave the command.
  return 2 if isinstance(error, FileNotFoundError) else 1


def failure(error: OSError) -> str:
  """Says which file failed us, why, and what to do before it is tried again.

  >>> failure(OSError(errno.ENOSPC, 'No space left on device', 'runs/a'))
  'runs/a: No space left on device. Make room there'
  """
  where = f'{error.filename}: ' if error.filename else ''
  reason = error.strerror or str(error) or type(error).__name__
  way = _WAYS.get(error.errno or 0, 'See to that')
  return f'{where}{reason.rstrip(".")}. {way}'


def legible() -> None:
  """Makes stdout and stderr take all that is printed: no run ends by it.

  A letter that they have not is a ?. One that is closed leads nowhere: the next
  file that is opened would get its number, and what libraries print. So does
  one that nobody reads any more.
  """
  for name in ('stdout', 'stderr'):
    stream = getattr(sys, name)
    if stream is None:
      setattr(sys, name, open(os.devnull, 'w'))
    elif stream is getattr(sys, f'__{name}__'):
      setattr(sys, name, _unread(stream))
    elif isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='replace')


def _unread(stream) -> io.TextIOWrapper:
  """The same stream, which may lose its reader."""
  stream.flush()
  return io.TextIOWrapper(
    io.BufferedWriter(_Unread(stream.fileno(), 'w', closefd=False)),
    stream.encoding,
    errors='replace',
    line_buffering=stream.line_buffering or stream.write_through,
  )


class _Unread(io.FileIO):
  """A file that takes what nobody reads, as after | head or without a tty."""

  def write(self, data) -> int:
    try:
      return super().write(data)
    except OSError as error:
      if error.errno not in (errno.EPIPE, errno.EIO):
        raise
      return len(data)
