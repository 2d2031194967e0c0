"""The laboratory's problems: what is claimed of them holds at random points."""

import bz2
import codecs
import gzip
import lzma

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import smoothness
from moniqua_jax.laboratory import driver, libsvm, problems, splits

SCALES = (1e-2, 1e-1, 1.0, 10.0, 100.0)
EACH = (0, 0, None)  # worker's features, worker's targets, one x for all


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope='module')
def cancer():
  features, labels = libsvm.breast_cancer()
  return splits.by_norm(splits.row_scaled(features), labels, 5)


@pytest.fixture(scope='module', params=['logistic', 'ridge'])
def problem(request, cancer):
  make = getattr(problems, f'{request.param}_regression')
  return make(*cancer, lam=1e-3, name=request.param)


def at(function, problem, x):
  mapped = jax.vmap(function, EACH)
  return mapped(problem.features, problem.targets, jnp.asarray(x))


def pairs(d):
  rng = np.random.default_rng(0)
  for near in SCALES:
    for apart in SCALES:
      y = near * rng.normal(size=d)
      yield y + apart * rng.normal(size=d), y


def bregman(problem, x, y):
  """D_f(x, y) of each worker, and how far rounding may move it."""
  terms = jnp.stack(
    [
      at(problem.loss, problem, x),
      -at(problem.loss, problem, y),
      -at(problem.gradient, problem, y) @ (x - y),
    ]
  )
  return terms.sum(0), 1e-15 * jnp.abs(terms).sum(0)


def squared(v, matrices):
  return np.einsum('...i,...ij,...j->...', v, matrices, v)


# ------------------------------------------------- what the matrices promise


def test_matrix_smoothness(problem):
  for x, y in pairs(problem.d):
    apart, rounding = bregman(problem, x, y)
    bound = squared(x - y, problem.matrices) / 2
    assert (apart <= bound * (1 + 1e-9) + rounding).all()


def test_cocoercivity_in_the_inverse_norm(problem):
  inverses = np.linalg.inv(problem.matrices)
  for x, y in pairs(problem.d):
    change = at(problem.gradient, problem, x) - at(problem.gradient, problem, y)
    apart, rounding = bregman(problem, x, y)
    least = squared(np.asarray(change), inverses) / 2
    assert (least <= apart * (1 + 1e-9) + rounding).all()


def test_ridge_attains_its_matrices(cancer):
  problem = problems.ridge_regression(*cancer)
  x, y = next(pairs(problem.d))
  half = squared(x - y, problem.matrices) / 2
  np.testing.assert_allclose(bregman(problem, x, y)[0], half, rtol=1e-9)


def test_strong_convexity(problem):
  for x, y in pairs(problem.d):
    apart, rounding = bregman(problem, x, y)
    least = problem.mu / 2 * ((x - y) ** 2).sum()
    assert (apart >= least * (1 - 1e-9) - rounding).all()


def test_logistic_matrix_is_the_hessian_at_zero(cancer):
  # phi'' is 1/4 at 0, where all margins are: the bound is attained.
  problem = problems.logistic_regression(*cancer)
  hessian = at(jax.hessian(problem.loss, argnums=2), problem, np.zeros(30))
  np.testing.assert_allclose(hessian, problem.matrices, atol=1e-14)


# ------------------------------------------------------ gradients and optima


@pytest.mark.parametrize('scale', SCALES)
def test_gradient_is_that_of_the_loss(problem, scale):
  x = scale * np.random.default_rng(1).normal(size=problem.d)
  automatic = at(jax.grad(problem.loss, argnums=2), problem, x)
  np.testing.assert_allclose(
    at(problem.gradient, problem, x), automatic, rtol=1e-11, atol=1e-14
  )


def test_optimum_has_no_gradient(problem):
  mean = at(problem.gradient, problem, problem.optimum).mean(0)
  assert jnp.linalg.norm(mean) <= 1e-12


def test_no_copy_of_x_per_worker(problem):
  batched = jax.vmap(problem.gradient, EACH)
  first = next(
    equation
    for equation in jax.make_jaxpr(batched)(
      problem.features, problem.targets, problem.optimum
    ).eqns
    if equation.primitive.name == 'dot_general'
  )
  assert (problem.d,) in [v.aval.shape for v in first.invars]


def test_dtype_is_that_of_the_arguments(problem):
  part = (problem.features[0], problem.targets[0], problem.optimum)
  for dtype in (jnp.float32, jnp.float64):
    given = [jnp.asarray(array, dtype) for array in part]
    assert problem.gradient(*given).dtype == dtype
    assert problem.loss(*given).dtype == dtype


def test_float32_without_x64(problem):
  double = at(problem.gradient, problem, problem.optimum)
  with jax.enable_x64(False):
    single = at(problem.gradient, problem, problem.optimum)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, double, atol=1e-5)


def test_a_numpy_lam_does_not_widen_float32(cancer):
  problem = problems.logistic_regression(*cancer, lam=np.float64(0.1))
  x = jnp.zeros(30, jnp.float32)
  features, targets = (jnp.asarray(part[0], jnp.float32) for part in cancer)
  assert problem.gradient(features, targets, x).dtype == jnp.float32


def test_newton_without_scaling():
  # Features up to 4,000: full Newton steps from 0 would not do.
  parts = splits.iid(*libsvm.breast_cancer(), n=5, seed=0)
  problem = problems.logistic_regression(*parts, lam=1e-3)
  mean = at(problem.gradient, problem, problem.optimum).mean(0)
  assert jnp.linalg.norm(mean) <= 1e-9


def test_a_failed_search_for_the_optimum_says_so(cancer, monkeypatch):
  monkeypatch.setattr(problems, 'STEPS', 1)
  with pytest.raises(ValueError, match='not found: .*row_scaled.* larger lam'):
    problems.logistic_regression(*cancer)


def test_a_lam_that_rounding_swallows(cancer):
  twice = np.ones((1, 4, 2)), np.ones((1, 4))
  for make in (problems.logistic_regression, problems.ridge_regression):
    with pytest.raises(ValueError, match='lam=1e-30 is lost .* larger lam'):
      make(*twice, lam=1e-30)


# ---------------------------------------------------------------- constants


@pytest.mark.parametrize(
  'source, n, shape, L, L_max',
  [
    (libsvm.breast_cancer, 5, (5, 113, 30), 0.41484, 0.46137),
    (libsvm.digits, 8, (8, 224, 64), 2.6138, 3.5535),
  ],
)
def test_known_constants(source, n, shape, L, L_max):
  features, labels = source()
  parts = splits.by_norm(splits.row_scaled(features), labels, n)
  problem = problems.logistic_regression(*parts, lam=1e-3)
  assert (problem.n, problem.m, problem.d) == shape
  assert problem.L == pytest.approx(L, rel=1e-3)
  assert problem.L_max == pytest.approx(L_max, rel=1e-3)
  assert problem.mu == problem.lam == 1e-3


def test_constants_are_eigenvalues(problem):
  c = {'logistic': 1 / 4, 'ridge': 1.0}[problem.name]
  singular = np.linalg.svd(problem.features, compute_uv=False)[:, 0]
  of_workers = c * singular**2 / problem.m + problem.lam
  np.testing.assert_allclose(problem.L_workers, of_workers, rtol=1e-12)
  largest = np.linalg.norm(problem.features.reshape(-1, problem.d), 2) ** 2
  of_mean = c * largest / (problem.n * problem.m) + problem.lam
  assert problem.L == pytest.approx(of_mean, rel=1e-12)
  assert problem.L <= problem.L_workers.mean() <= problem.L_max
  np.testing.assert_array_equal(
    problem.diagonals, [np.diag(matrix) for matrix in problem.matrices]
  )


@pytest.mark.parametrize(
  'change, message',
  [
    ({'lam': 0.0}, r'lam=0.0; it is above 0 .* singular'),
    ({'lam': float('nan')}, 'lam=nan; it is above 0'),
    ({'features': np.ones((4, 3))}, r'features have shape \(4, 3\); \[workers'),
    ({'targets': np.ones((2, 3))}, r'targets have shape \(2, 3\).*\(2, 4\)'),
    ({'features': np.full((2, 4, 3), np.nan)}, r'features\[0, 0, 0\] is nan'),
    ({'targets': np.full((2, 4), np.inf)}, r'targets\[0, 0\] is inf'),
    ({'features': np.full((2, 4, 3), 1e160)}, r'is 1e\+160; .*below 1e\+100'),
  ],
)
@pytest.mark.parametrize(
  'make', [problems.logistic_regression, problems.ridge_regression]
)
def test_refusals(make, change, message):
  given = {'features': np.ones((2, 4, 3)), 'targets': np.ones((2, 4))}
  with pytest.raises(ValueError, match=message) as caught:
    make(**given | change)
  assert '\n' not in str(caught.value)


def test_logistic_targets_are_signs():
  with pytest.raises(ValueError, match=r'targets=\[0\. 1\.\].*-1 and \+1'):
    problems.logistic_regression(np.ones((2, 1, 3)), [[0], [1]])


# ------------------------------------------------------ rows and partitions


def test_row_scaled():
  rows = splits.row_scaled([[1, -4], [0, 0], [3, 2]])
  np.testing.assert_array_equal(rows, [[0.25, -1], [0, 0], [1, 2 / 3]])
  assert rows.dtype == np.float64


@pytest.mark.parametrize('partition', [splits.by_norm, splits.iid])
@pytest.mark.parametrize('n', [1, 3, 10, 23])
def test_partitions_are_equal_and_keep_labels_with_rows(partition, n):
  labels = np.arange(23)
  features = np.stack([np.sqrt((7 * labels) % 23), 0 * labels], axis=1)
  parts, targets = partition(features, labels, n, 0)
  assert parts.shape == (n, 23 // n, 2) and targets.shape == (n, 23 // n)
  assert parts.dtype == targets.dtype == np.float64
  kept = targets.ravel().astype(int)
  assert len(set(kept)) == kept.size
  np.testing.assert_array_equal(features[kept], parts.reshape(-1, 2))


def test_by_norm_sorts_and_drops_the_longest():
  features = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [0.0, -1.0], [9, 9]])
  _, targets = splits.by_norm(features, np.arange(5), 2)
  # Rows 1 and 3 are as long as each other and stay in order.
  assert targets.tolist() == [[1, 3], [2, 0]]


def test_iid_is_a_function_of_the_seed():
  features, labels = np.ones((40, 1)), np.arange(40)
  order = lambda seed: splits.iid(features, labels, 4, seed)[1].tolist()
  assert order(1) == order(1) != order(2)


@pytest.mark.parametrize('partition', [splits.by_norm, splits.iid])
@pytest.mark.parametrize(
  'features, labels, n, message',
  [
    (np.ones((5, 2)), np.ones(5), 6, 'n=6 workers; 5 rows make 1 to 5'),
    (np.ones((5, 2)), np.ones(5), 0, 'n=0 workers'),
    (np.ones((5, 2)), np.ones(5), 2.0, 'n=2.0 workers'),
    (np.ones((5, 2)), np.ones(4), 2, r'labels have shape \(4,\)'),
    (np.ones(5), np.ones(5), 2, r'features have shape \(5,\)'),
  ],
)
def test_partitions_refuse(partition, features, labels, n, message):
  with pytest.raises(ValueError, match=message):
    partition(features, labels, n, 0)


# -------------------------------------------------------------- LIBSVM files


def write(tmp_path, text):
  path = tmp_path / 'data.txt'
  path.write_bytes(text.encode())
  return path


@pytest.mark.parametrize(
  'text, features, labels',
  [
    ('+1 1:1 3:2\n-1 2:.5\n', [[1, 0, 2], [0, 0.5, 0]], [1, -1]),
    ('1 1:1\n2 2:1\n', [[1, 0], [0, 1]], [-1, 1]),
    ('1 0:1\n0 1:1\n', [[1, 0], [0, 1]], [1, -1]),
    ('# head\n\n1 1:1 # tail\r\n  \n0\n', [[1], [0]], [1, -1]),
  ],
  ids=['signs', 'one and two', 'from index 0', 'comments and empty rows'],
)
def test_read(tmp_path, text, features, labels):
  got = libsvm.read(write(tmp_path, text))
  np.testing.assert_array_equal(got[0], features)
  np.testing.assert_array_equal(got[1], labels)
  assert got[0].dtype == got[1].dtype == np.float64


def test_read_compressed(tmp_path):
  path = tmp_path / 'data.bz2'
  path.write_bytes(bz2.compress(b'1 1:1\n2 2:1\n'))
  assert libsvm.read(str(path))[1].tolist() == [-1, 1]


PACKED = {
  'bz2': bz2.compress,
  'gz': gzip.compress,
  'xz': lzma.compress,
  'a mark': lambda text: codecs.BOM_UTF8 + text,
  'UTF-16': lambda text: text.decode().encode('utf-16'),
  'gz of a mark': lambda text: gzip.compress(codecs.BOM_UTF8 + text),
}


@pytest.mark.parametrize('kind', PACKED)
@pytest.mark.parametrize('name', ['data', 'data.txt', 'data.svm'])
def test_files_are_told_by_their_first_bytes(kind, name, tmp_path):
  path = tmp_path / name
  path.write_bytes(PACKED[kind](b'1 1:1\n2 2:1\n'))
  features, labels = libsvm.read(path)
  assert features.tolist() == [[1, 0], [0, 1]] and labels.tolist() == [-1, 1]
  path.write_bytes(PACKED[kind](b'1 1:1\n2 2:x\n'))
  with pytest.raises(ValueError, match=f"{name}, line 2: '2 2:x' is not"):
    libsvm.read(path)


def test_what_cannot_be_unpacked_is_named(tmp_path):
  path = tmp_path / 'data'
  for data, said in (
    (bz2.compress(b'1 1:1\n2 2:1\n' * 99)[:-9], 'cannot be read: Comp'),
    (gzip.compress(b'1 1:1\n2 2:1\n' * 99)[:-9], 'cannot be read: Comp'),
    (b'PK\x03\x04 and so on', 'cannot be read: it is packed by zip; unpack'),
    (b'\xff\xfe1', "cannot be read: 'utf-16"),
  ):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f'data {said}'):
      libsvm.read(path)


def test_targets_of_ridge_are_any_numbers(tmp_path):
  path = write(tmp_path, '0.5 1:1\n-2 2:1\n7e3 1:1 2:1\n0.5 1:2\n')
  features, targets = libsvm.read_targets(path)
  assert features.shape == (4, 2) and targets.tolist() == [0.5, -2, 7000, 0.5]
  config = smoothness.get_config('libsvm')
  with config.unlocked():
    config.problem.name, config.workers = 'ridge_regression', 2
    config.data.path = str(path)
  problem = driver.problem_of(config)
  assert sorted(problem.targets.ravel()) == [-2, 0.5, 0.5, 7000]
  with pytest.raises(ValueError, match='3 different labels'):
    libsvm.read(path)
  two = write(tmp_path, '3 1:1\n5 2:1\n')
  assert libsvm.read_targets(two)[1].tolist() == [-1, 1]
  with pytest.raises(ValueError, match="line 2: 'nan 2:1' has a number that"):
    libsvm.read_targets(write(tmp_path, '3 1:1\nnan 2:1\n'))


@pytest.mark.parametrize(
  'text, message',
  [
    ('', 'is empty'),
    ('\n# nothing\n', 'is empty'),
    ('foo\n', "line 1: 'foo' is not 'label index:value"),
    ('1 1:1\n\n2 1:1\n1 3:0.5 x\n', "line 4: '1 3:0.5 x' is not"),
    ('1 1:1\n2 3:1 2:1\n1 1:1\n', "line 2: '2 3:1 2:1' .* ascending"),
    ('1 -1:1\n', "line 1: '1 -1:1' is not"),
    ('1 1:1\n2 99999999999:1\n', 'line 2: .* is not'),
    ('1,0.5,2\n', 'line 1: .* is not'),
    ('1 ' + 'x' * 999, r"line 1: '1 x+\.\.\.' is not"),
    ('1 1:1\n\n-1 1:nan\n', "line 3: '-1 1:nan' has a number"),
    ('1 1:1\n-1 1:1 2:1e999\n', 'line 2: .* not finite'),
    ('nan 1:1\n1 1:1\n', "line 1: 'nan 1:1' has .* not finite"),
    ('1\n2\n', 'has labels but no features'),
    ('1 1:1\n2 999999999:1\n', 'GiB when dense.*largest index'),
    ('1 1:1\n1 1:1\n', r'has 1 different labels \(1\); .* has 2'),
    ('0 1:1\n1 1:1\n2 1:1\n', r'has 3 different labels \(0, 1, 2\)'),
    (''.join(f'{k} 1:1\n' for k in range(9)), r'\(0, 1, 2, 3, 4, \.\.\.\)'),
  ],
)
def test_bad_files(tmp_path, text, message):
  path = write(tmp_path, text)
  with pytest.raises(ValueError, match=message) as caught:
    libsvm.read(path)
  assert str(caught.value).startswith(str(path))
  assert '\n' not in str(caught.value)


def test_unreadable_files(tmp_path):
  with pytest.raises(ValueError, match='nowhere cannot be read: No such file'):
    libsvm.read(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match='cannot be read: Is a directory'):
    libsvm.read(tmp_path)
  for suffix in ('gz', 'bz2', 'xz'):
    path = tmp_path / f'data.{suffix}'
    path.write_bytes(b'1 1:1\n2 2:1\n')
    with pytest.raises(ValueError, match=f'{suffix} cannot be read: '):
      libsvm.read(path)


def test_the_line_is_found_in_a_long_file(tmp_path):
  lines = ['1 1:1', '-1 2:1'] * 500
  lines[701] = '1 1:1 oops'
  with pytest.raises(ValueError, match="line 702: '1 1:1 oops'"):
    libsvm.read(write(tmp_path, '\n'.join(lines)))
