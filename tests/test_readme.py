"""What the README shows runs."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text()


def test_the_six_lines_run(capsys):
  code, *more = re.findall(r'```python\n(.*?)```', TEXT, flags=re.DOTALL)
  names = {}
  exec(compile(code, 'README.md', 'exec'), names)
  assert len(more) == 2
  for piece in more:  # they go on from the first
    exec(compile(piece, 'README.md', 'exec'), names)
    init = names['mj'].simulated(names['tx'].init, (0,))
    init(
      {'w': names['jnp'].zeros((8, 1024, 2))}
      if piece is more[0]
      else names['params']
    )
  loss, nbytes = capsys.readouterr().out.split()
  # Mean square of a fit to a linear target that 8 workers share; 3 + 12 bytes.
  assert float(loss) < 0.1 and int(nbytes) == 15
  marks = re.findall(r'# (\d)$', code, flags=re.MULTILINE)
  assert marks == ['1', '2', '3', '4', '5', '6']


def test_every_file_that_it_names_is_there():
  for name in re.findall(r'`((?:[\w/]+/)?\w+\.py)`', TEXT):
    assert list(ROOT.glob(name)) or list((ROOT / 'moniqua_jax').glob(name)), (
      name
    )


def test_its_commands_name_real_configs_and_targets():
  makefile = (ROOT / 'Makefile').read_text()
  for target in re.findall(r'^make (\S+)', TEXT, flags=re.MULTILINE):
    assert f'\n{target}:' in makefile
  for path in re.findall(r'--config=([\w/]+\.py)', TEXT):
    assert (ROOT / path).is_file()
