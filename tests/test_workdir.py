"""The folder of a run: what may be in it, what it may be called."""

import pytest

from moniqua_jax.training import workdir as workdir_lib
from tests.trained import small


@pytest.mark.parametrize('name', ['lr[0.1]', 'a*b', '[x]/run', 'what?'])
def test_a_name_that_is_a_pattern_is_refused(tmp_path, name):
  """Orbax would look for its files by it, and save none of the arrays."""
  with pytest.raises(ValueError, match='is a pattern, .*; take a name'):
    workdir_lib.open_(tmp_path / name, small(), False)
  assert not list(tmp_path.iterdir())
