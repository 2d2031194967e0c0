"""What `make demo` promises, over five seeds; two minutes on two cores."""

import numpy as np
import pytest

from configs import digits
from moniqua_jax.training import loop, metrics

SEEDS = range(5)


def last_rows(method, tmp_path):
  for seed in SEEDS:
    config = digits.get_config(method)
    config.seed = seed
    workdir = tmp_path / f'{method}{seed}'
    row = loop.train_and_evaluate(config, workdir)
    rows = metrics.read(workdir)
    unreadable = sum(r['gossip/unreadable'] for r in rows)
    messages = sum(r['gossip/messages'] for r in rows)
    yield row['test/accuracy'], row['test/worst_worker'], unreadable / messages


@pytest.mark.slow
def test_few_bits_cost_less_than_a_point(tmp_path):
  of = {
    method: np.array(list(last_rows(method, tmp_path))).T
    for method in ('dpsgd', 'moniqua4', 'moniqua1')
  }
  full = of['dpsgd'][0].mean()
  assert full > 0.96
  for method in ('moniqua4', 'moniqua1'):
    mean_model, worst_worker, unreadable = of[method]
    assert mean_model.mean() > full - 0.01
    assert worst_worker.mean() > full - 0.015
    assert unreadable.max() < 0.001
