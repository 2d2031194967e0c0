"""Dense NumPy forms of what is not in dense.py, as the papers write it.

X is f64[n, d], one worker a row; W f64[n, n], row i of receiver i; grad(X) is
f64[n, d].
"""

import numpy as np


def delta_of(bits, rounding):
  """What Moniqua's Lemma 2 calls delta."""
  return 2.0**-bits if rounding == 'stochastic' else 2.0 ** -(bits + 1)


def circle(theta, bits, rounding):
  """B_theta and the error bound delta B_theta, of theta as it is in f32."""
  delta = delta_of(bits, rounding)
  b_theta = 2 * float(np.float32(theta)) / (1 - 2 * delta)
  return b_theta, delta * b_theta


def identity(v):
  return v


def min_max(bits):
  """Nearest of 2^bits points between the least and the largest value."""

  def compress(v):
    low, step = v.min(), (v.max() - v.min()) / (2**bits - 1)
    return low + step * np.floor((v - low) / step + 0.5) if step else v

  return compress


def each(compress, x):
  return np.stack([compress(row) for row in x])


def cola(blocks, targets, w, lam, c, residual, steps, sigma):
  """Algorithm 1 of COLA on columns: A_[k] of each node; gives x_[k], v_k."""
  n, rows = len(blocks), len(targets)
  x, v = [np.zeros(a.shape[1]) for a in blocks], np.zeros((n, rows))
  for _ in range(steps):
    v = w @ v
    for k, a in enumerate(blocks):
      slope = residual(v[k], targets) / rows
      curve = sigma * c / rows * a.T @ a + lam * np.eye(a.shape[1])
      delta = np.linalg.solve(curve, -a.T @ slope - lam * x[k])
      x[k] = x[k] + delta
      v[k] = v[k] + n * a @ delta
  return np.concatenate(x), v


def power_sgd(gradients, right):
  """The mean of matrices f64[n, m, k] in each step, and what each has left."""
  error = np.zeros_like(gradients[0])
  for g in gradients:
    full = g + error
    left, _ = np.linalg.qr(full.mean(axis=0) @ right)
    rows = np.swapaxes(full, 1, 2) @ left
    right = rows.mean(axis=0)
    error = full - left @ np.swapaxes(rows, 1, 2)
    yield left @ right.T, error


def quasi_global(
  x, grad, ws, rate, steps, beta, mu, nesterov=False, period=1, warmup=0
):
  """QG-DSGDm: a W for each turn; rate(k) of a step. Also gives m."""
  m, last = np.zeros_like(x), x
  for k in range(steps):
    g = grad(x)
    d = beta * m + g
    d = g + beta * d if nesterov else d
    turn, ends = k // period, (k + 1) % period == 0
    mix = ws[turn % len(ws)] if ends else np.eye(len(x))
    x = mix @ x - rate(k) * d
    total = sum(rate(k - j) for j in range(period))
    if ends and total:
      kept = mu * min(1, turn / warmup) if warmup else mu
      m = kept * m + (1 - kept) * (last - x) / total
    last = x if ends else last
  return x, m


# ------------------------------------------ the authors' block steps, float64


def block_dcgd_authors(diagonal, beta, sizes):
  """The looser delta of the script of arXiv:2106.03524, Section 4.

  delta = sum_l sqrt(d_l) N_l / (beta - B) + sqrt(sum_l N_l^2 / (beta - B))
  """
  N, left = _block_norms(diagonal, sizes), beta - len(sizes)
  delta = (N * np.sqrt(sizes)).sum(-1) / left
  delta = delta + np.sqrt((N**2).sum(-1) / left)
  return delta[..., None] / N


def block_diana_authors(diagonal, beta, sizes, n, mu):
  """(sqrt(d) + |Diag(L_i)| / (n mu))^2 where `block_diana` has sum_l A_l^2."""
  cost = np.asarray(diagonal, float) / (n * mu)
  A, left = _block_norms(cost, sizes) + np.sqrt(sizes), beta - len(sizes)
  square = (np.sqrt(sum(sizes)) + np.linalg.norm(cost, axis=-1)) ** 2
  half = (A * np.sqrt(sizes)).sum(-1) / (2 * left)
  delta = half + np.sqrt(half**2 + square / left)
  return delta[..., None] / A


def _block_norms(values, sizes):
  blocks = np.split(np.asarray(values, float), np.cumsum(sizes)[:-1], axis=-1)
  return np.stack([np.linalg.norm(b, axis=-1) for b in blocks], axis=-1)
