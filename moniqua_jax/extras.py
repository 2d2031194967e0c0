"""The library needs jax, numpy and optax; an extra brings what else is used.

`pip install 'moniqua_jax[graphs]'`; pyproject.toml says what each extra holds.
"""

from collections.abc import Iterator
import contextlib


class MissingExtra(ImportError):
  """A package of an extra is not installed; the message names the extra."""


@contextlib.contextmanager
def needed(extra: str) -> Iterator[None]:
  """Names the extra that brings a package which the body cannot import.

  >>> with needed('graphs'):
  ...   import nobody_has_this
  Traceback (most recent call last):
  moniqua_jax.extras.MissingExtra: No module named 'nobody_has_this': \
pip install 'moniqua_jax[graphs]'.
  """
  try:
    yield
  except ModuleNotFoundError as error:
    raise MissingExtra(
      f"{error}: pip install 'moniqua_jax[{extra}]'."
    ) from error
