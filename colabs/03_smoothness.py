# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quantization in the shape of the loss
#
# Wang, Safaryan and Richtárik, *Theoretically better and numerically faster
# distributed optimization with smoothness-aware quantization techniques*, NeurIPS
# 2022, [arXiv:2106.03524](https://arxiv.org/abs/2106.03524).
#
# A loss is steep along some directions and flat along others. A worker whose loss
# $f_i$ is smooth by a matrix $\mathbf L_i$ sends
# $\mathcal C(\mathbf L_i^{-1/2} g)$, and the receivers form
# $\mathbf L_i^{1/2} \mathcal C(\cdot)$.
#
# The text of the paper was not at hand; its authors' code was, and fixes nearly
# every formula below. What differs is said in `docs/smoothness.md`.
#
# On Colab, run the next cell first. Locally, from a checkout:
# `pip install '.[notebooks]'`, then `jupyter execute colabs/03_smoothness.ipynb`.

# %%
try:
  import moniqua_jax
except ImportError:
  from pathlib import Path

  # REPOSITORY: the address from which moniqua_jax can be cloned.
  source = '..' if Path('../pyproject.toml').exists() else './clone'
  # !test -d {source} || git clone --quiet REPOSITORY {source}
  # %pip install --quiet '{source}[all]'
  import moniqua_jax

# %%
# %matplotlib inline
import time

import jax
import jax.numpy as jnp
import numpy as np

import moniqua_jax as mj
from moniqua_jax import plots, theory
from moniqua_jax.laboratory import libsvm, methods, problems, report, runs, splits

# %% [markdown]
# ## Two dimensions: the shape of the noise
#
# $f(x) = \frac12 x^\top \mathbf L x$, a hundred times steeper along one direction
# than along the other. Standard dithering with $s$ levels,
#
# $$\mathcal C(x)_j = \|x\| \, \mathrm{sgn}(x_j) \, \xi_j / s, \qquad
# \xi_j = \lfloor s |x_j| / \|x\| + u_j \rfloor,$$
#
# knows nothing of it: its values lie on a grid along the axes. Within
# $\mathbf L^{1/2}$ the grid takes the shape of the level sets.

# %%
angle, steep, flat = np.pi / 6, 10.0, 0.1
axes_of_f = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
L = axes_of_f @ np.diag([steep, flat]) @ axes_of_f.T

NAMES = {
  'C(g)': mj.dithering(levels=2),
  'within $\\mathbf{L}^{1/2}$': mj.smooth(mj.dithering(levels=2), L),
}
PLAIN, SHAPED = NAMES
keys = jax.random.split(jax.random.key(0), 4000)


def sender(q):
  """What is received when g is sent with each of the keys."""
  send = lambda key, g: q.decode(q.encode(g, key), g)
  return jax.jit(jax.vmap(send, (0, None)))


draws = {name: sender(q) for name, q in NAMES.items()}


def gradient(phi):
  """At a point where f = 1/2; phi = 0 is the steep direction."""
  return axes_of_f @ (np.sqrt([steep, flat]) * [np.cos(phi), np.sin(phi)])


rng = np.random.default_rng(0)
turn = np.linspace(0, 2 * np.pi, 100)
level_set = axes_of_f @ (np.array([np.cos(turn), np.sin(turn)]) * np.sqrt([[steep], [flat]]))
g = jnp.float32(gradient(np.pi / 4))
with plots.drawing(7, 3.6) as fig:
  panels = fig.subplots(1, 2, sharex=True, sharey=True)
  for panel, name in zip(panels, NAMES):
    cloud = np.asarray(draws[name](keys, g))[:400]
    cloud = cloud + 0.03 * rng.normal(size=cloud.shape)  # to see how many
    panel.plot(*level_set, '-', color='0.5', label='gradients where f = 1/2')
    panel.plot(*cloud.T, '.', color=plots.COLOURS[1], ms=2, label='what is received')
    panel.plot(*g, '^', color=plots.COLOURS[2], ms=8, label='the gradient')
    panel.set(xlabel='coordinate 1', title=name, aspect='equal')
  panels[0].set_ylabel('coordinate 2')
  fig.legend(*panels[0].get_legend_handles_labels(), loc='outside lower center',
             ncols=3, frameon=False)
fig

# %% [markdown]
# (Points are moved a little, so that one sees how many there are.) Both are
# unbiased. In the norm $\|v\|^2_{\mathbf L^{-1}} = v^\top \mathbf L^{-1} v$, in
# which the gradients above are equally long, the shaped noise is bounded by one
# $\omega$ wherever the gradient points. The other is not: where the gradient is
# steep, it fills the flat direction.

# %%
inverse = np.linalg.inv(L)
square = lambda v: np.einsum('...i,ij,...j->...', v, inverse, v)
X, Y = 'direction (degrees, 0 is steep)', r'noise in the norm of $\mathbf{L}^{-1}$'
noise = {PLAIN: [], SHAPED: []}
omega = theory.smoothness.dithering_omega(d=2, s=2)
for phi in np.linspace(0.01, np.pi - 0.02, 36):
  g = jnp.float32(gradient(phi))
  for name in NAMES:
    error = np.float64(draws[name](keys, g)) - np.float64(g)
    noise[name].append({X: np.degrees(phi), Y: float(np.mean(square(error)))})
    deviation = np.sqrt(omega * steep / len(keys))  # of a mean, at most
    assert np.abs(error.mean(0)).max() < 5 * deviation  # unbiased
plots.compare(noise, [(X, Y)], quantities={Y: (Y, 1.0, 'log')})

# %%
worst = {name: max(row[Y] for row in rows) for name, rows in noise.items()}
print({name: round(value, 3) for name, value in worst.items()})
assert worst[SHAPED] < omega
assert worst[PLAIN] > 5 * worst[SHAPED]

# %% [markdown]
# ## What a compressor costs
#
# Two numbers describe an unbiased compressor:
#
# $$E\|\mathcal C(x) - x\|^2 \le \omega \|x\|^2, \qquad
# E\|\mathcal C(x) - x\|^2_{\mathbf L_i} \le \mathcal L_i \|x\|^2 .$$
#
# With the first alone a step size is $1 / (L + 6\, \omega L_{\max} / n)$ (DIANA);
# with the second it is $1 / (L + 6\, \mathcal L_{\max} / n)$ (DIANA+). Only the
# diagonal of $\mathbf L_i$ matters for choosing the steps. With a step for each
# coordinate, $\mathcal C(x)_j = \|x\| \, \mathrm{sgn}(x_j) \, h_j \xi_j$, the best
# for a budget of $\beta$ values (DCGD+) is
#
# $$h_{i;j} = \frac1\beta \sqrt{\frac{\sum_t \mathbf L_{i;tt}}{\mathbf L_{i;jj}}} .$$
#
# Logistic regression on scikit-learn's breast cancer data: 5 workers, rows sorted
# by norm, $\lambda = 10^{-3}$.

# %%
jax.config.update('jax_enable_x64', True)  # distances down to 1e-10
features, labels = libsvm.breast_cancer()
parts = splits.by_norm(splits.row_scaled(features), labels, n=5)
problem = problems.logistic_regression(*parts, lam=1e-3, name='breast_cancer')
print(f'n = {problem.n}, d = {problem.d}, L = {problem.L:.3f}, '
      f'L_max = {problem.L_max:.3f}, L / mu = {problem.L / problem.mu:.0f}')

diagonal = np.sort(problem.diagonals[0])[::-1]
steps = theory.steps.varying_dcgd(diagonal, beta=problem.d / problem.n)
uniform = theory.steps.uniform(problem.d, problem.n)
J, H = 'coordinate, steepest first', 'step $h_j$'
LJJ = r'$\mathbf{L}_{jj}$'
plots.compare(
  {
    'varying': [{J: j, H: h, LJJ: l} for j, (h, l) in enumerate(zip(steps, diagonal))],
    'one for all': [{J: j, H: uniform} for j in range(problem.d)],
  },
  [(J, H), (J, LJJ)],
  quantities={H: (H, 1.0, 'log'), LJJ: (LJJ, 1.0, 'log')},
)

# %%
CHOSEN = ['GD', 'DIANA', 'DIANA, authors', 'DIANA+ uniform', 'DIANA+ varying',
          'DIANA+ block', 'DCGD+ varying']
named = {name: methods.METHODS[name](problem, 'l2') for name in CHOSEN}
for name, method in named.items():
  print(report.one_line(name, method, problem))

# %%
calL = {name: m.design.calL for name, m in named.items() if m.design}
assert calL['DIANA+ varying'] < calL['DIANA+ uniform'] < calL['DIANA']
assert named['DIANA+ varying'].gamma > 2 * named['DIANA, authors'].gamma
budget = np.sqrt(np.sum(1 / steps**2))
assert abs(budget - problem.d / problem.n) < 1e-9  # beta, as asked for
assert abs(uniform - problem.n / np.sqrt(problem.d)) < 1e-9

# %% [markdown]
# `DIANA, authors` has the step size of the authors' code,
# $1 / (L_{\max} (1 + 2 \omega / n))$, larger than the proven one, and so is the
# harder rival.
#
# ## DIANA+ against DIANA
#
# The workers are those of the library: every message is encoded to bytes and
# decoded from them. One seed, 8000 iterations, each method timed alone.

# %%
CHUNK, CHUNKS = 500, 16
keys = jax.random.split(jax.random.key(0), 1)
curves = {}
for name, method in named.items():
  carry = runs.start(problem, [method], keys)
  advance = runs.advance(problem, [method], CHUNK)
  distance, coded, seconds = [], [], []
  for chunk in range(CHUNKS):
    began = time.perf_counter()
    carry, trace = jax.block_until_ready(
      advance(carry, keys, np.int64(CHUNK * chunk))
    )
    seconds.append((time.perf_counter() - began) / CHUNK)
    distance.append(trace.distance[:, 0])
    coded.append(trace.coded[:, 0])
  distance, each = (np.concatenate(x, 1).astype(float) for x in (distance, coded))
  sent = problem.n * (np.cumsum(each, 1) - each)  # before an iteration
  rows = report.curve(method, problem, distance, sent, np.median(seconds[1:]))
  curves[name] = [
    row | {'coded_bits': row['coded_bits'] + row['upload_bits']}
    for row in rows
    if row['distance'] > 1e-11
  ]
plots.compare(
  curves,
  [('iteration', 'distance'), ('coded_bits', 'distance'), ('seconds', 'distance')],
)

# %% [markdown]
# Bits are those of all workers, in Elias' code as the paper counts them, and with
# the upload: once, before the run, all $\mathbf L_i^{1/2}$ and steps. Seconds are
# of this machine, all workers on it and nothing sent over a network.


# %%
def reached(name, key, target=1e-6):
  return next((row[key] for row in curves[name] if row['distance'] < target), np.inf)


print(f'to 1e-6        {"iterations":>12s} {"Mbit":>8s} {"seconds":>8s}')
for name in named:
  k, bits, clock = (reached(name, key) for key in ('iteration', 'coded_bits', 'seconds'))
  print(f'{name:16s} {k:10.0f} {bits / 1e6:8.2f} {clock:8.3f}')

# %%
for rival in ('DIANA', 'DIANA, authors'):
  for key in ('iteration', 'coded_bits'):
    assert reached('DIANA+ varying', key) < 0.5 * reached(rival, key)
assert reached('DIANA+ varying', 'coded_bits') < 0.2 * reached('GD', 'coded_bits')
floor = min(row['distance'] for row in curves['DCGD+ varying'])
assert floor > 1e-5  # without shifts it stays around the optimum
assert reached('DCGD+ varying', 'iteration') == np.inf

# %% [markdown]
# Blocks, with a norm each, do not pay here: at $d = 30$ five norms of 32 bits
# weigh more than the values. They pay where $d$ is large
# (`results/smoothness_cost`).
#
# More data, five seeds and all methods:
# `python train.py --config=configs/smoothness.py:breast_cancer
# --workdir=runs/smoothness`.
