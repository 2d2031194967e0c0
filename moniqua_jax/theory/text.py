"""A report as text."""

from collections.abc import Sequence

from moniqua_jax.theory import laws, summary, theorems

DASH = '–'


def table(found: summary.Report) -> str:
  """A report as text, with a row for each number of bits.

  >>> from moniqua_jax import ring
  >>> print(table(summary.report(ring(8), 'choco')).splitlines()[-1])
  papers (recalled) 16 vectors of d floats over the graph
  """
  line = lambda name, text: f'{name:<18}{text}'
  above = [line(*fact) for fact in _facts(found)]
  grid = [*_grid(found.rows), '', *_LEGEND, ''] if found.rows else []
  return '\n'.join([*above, '', *grid, *(line(*m) for m in _memory(found))])


_LEGEND = (
  'theta: in units of alpha G, the bound on every coordinate of an update; it',
  'holds for certain. gain: of the loop of a theta that is `safety` times the',
  'distance seen; from 1 on it runs away. fitted: that of fitted_theta. Last',
  'two columns: the largest gamma of lazy(topology, gamma) with such a `gain`.',
  'All of the table is ours.',
)


def _facts(found: summary.Report):
  """Name and text of each line above the table."""
  rounds = '' if found.rounds == 1 else f'{found.rounds} in turn; '
  sent = f'{found.messages:g} messages a step'
  yield 'algorithm', f'{found.algorithm}, gamma {found.gamma:g}'
  yield 'topology', f'{rounds}{found.n} workers, {sent}'
  yield 'sent', _sent(found)
  yield 'W', _spectrum(found)
  yield 't_mix', f'{found.t_mix} rounds'
  yield 'paper', found.paper.note
  if found.paper.theta is not None:
    yield '', _theorem(found.paper)
  if found.sums is None:
    yield 'ours', f'it {laws.law(found.algorithm).without}'
    return
  gradient, noise = found.sums
  yield 'ours', f"S {gradient:.2f}, S' {noise:.2f}: neighbours are within"
  yield '', "S alpha G + S' delta B in each coordinate"
  least = found.least_bits
  with_bits = f'from {least} bits on' if least else 'with no number of bits'
  yield '', f'a theta holds for certain {with_bits}'
  floor = f'{found.noise_floor:.2f} delta B'
  yield 'noise floor', f'{floor}, simulated with shared dither'
  yield 'safety', f'{found.safety:g}'


def _sent(found: summary.Report) -> str:
  several, steps, fragments = found.often
  times = found.messages / found.n * several / (steps * fragments)
  text = f'{times:.4g} b bits a parameter and step by a worker, on average'
  if found.often == (1, 1, 1):
    return text
  rounds = f'{several} rounds' if several > 1 else '1 round'
  part = f' of one of {fragments} fragments' if fragments > 1 else ''
  when = f'one of {steps}' if steps > 1 else 'each'
  return f'{text}; {rounds}{part} in {when}'


def _theorem(p: theorems.Paper) -> str:
  text = f'theta {p.theta:.1f} alpha G'
  return f'{text}, delta {p.delta:.3g}, {p.bits} bits' if p.delta else text


def _spectrum(found: summary.Report) -> str:
  text = f'rho {found.rho:.4f}, 1 - rho {1 - found.rho:.3g}'
  if found.lambda_2 is None or found.lambda_n is None:
    return text
  # + 0.0 takes the sign off a zero.
  return (
    f'{text}, lambda_2 {round(found.lambda_2, 4) + 0.0}, lambda_n '
    f'{round(found.lambda_n, 4) + 0.0}'
  )


def _grid(rows: Sequence[summary.Row]) -> list[str]:
  head = ['bits', 'delta', 'theta', 'gain', 'fitted']
  head += ['gamma, gain 1', 'gamma, gain 1/2']
  show = lambda value, spec: DASH if value is None else format(value, spec)
  cells = [
    [
      str(row.bits),
      f'{row.delta:.4g}',
      'none' if row.theta is None else f'{row.theta:.1f}',
      f'{row.gain:.2f}',
      f'{row.fitted:.2f}',
      show(row.brink, '.2f'),
      show(row.safe, '.2f'),
    ]
    for row in rows
  ]
  widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
  line = lambda row: ' | '.join(
    cell.rjust(width) for cell, width in zip(row, widths, strict=True)
  )
  rule = '|'.join('-' * (width + 1) + ':' for width in widths)
  return [f'| {line(head)} |', f'|{rule}|', *(f'| {line(r)} |' for r in cells)]


def _memory(found: summary.Report):
  """Name and text of each line below the table."""
  mib = lambda count: (
    f' = {4 * count * found.size / 2**20:,.2f} MiB' if found.size else ''
  )
  text = lambda count: f'{count} vector{"" if count == 1 else "s"} of d floats'
  own, replicas = found.memory, found.replicas
  yield 'memory, ours', f'{text(own)} a worker{mib(own)}'
  if replicas is not None:
    yield (
      'papers (recalled)',
      f'{text(replicas)} over the graph{mib(replicas)}',
    )
