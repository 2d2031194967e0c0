# `make demo` and `make test` need Python 3.11 or newer and make, no more.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --disable-pip-version-check --constraint constraints.txt
# Temporaries above 32 MB cost a page fault each step; keep them in the heap.
MALLOC := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=68719476736 \
  MALLOC_TOP_PAD_=268435456
DEMO := dpsgd moniqua4 moniqua1
CODEC := $(wildcard moniqua_jax/native/*.cc moniqua_jax/native/*.h)
PARALLEL := -n 3 --dist worksteal
PYTEST := $(BIN)/python -m pytest
TPU := PYTHONPATH=.libtpu $(PYTEST) -rs tests/test_tpu.py
JAX = $(shell sed -n 's/^jax==//p' constraints.txt)
CUDA = jax-cuda12-pjrt==$(JAX) jax-cuda12-plugin==$(JAX) nvidia-cuda-nvcc-cu12

.PHONY: demo demo-text results-digits docs test fast fast-tpu test-all test-tpu \
  test-gpu test-versions coverage bench mutants check types audit lint clean

$(BIN)/pip:
	$(PYTHON) -m venv .venv

# What the demo needs, and no more; Python compiles what it imports of it, and a
# C++ compiler, where there is one, the codec for CPUs.
.venv/demo: pyproject.toml constraints.txt $(CODEC) | $(BIN)/pip
	@echo 'Into .venv, without the tools of the tests: 750 MB ...'
	$(PIP) --no-compile --editable '.[train]'
	-$(BIN)/python -m moniqua_jax.native
	touch $@

.venv/installed: pyproject.toml constraints.txt $(CODEC) | $(BIN)/pip
	$(PIP) --editable '.[all,test,notebooks,benchmarks,docs,dev]'
	-$(BIN)/python -m moniqua_jax.native
	touch .venv/demo $@

# Eight workers on a ring: full precision, 4 bits and 1 bit; then one table.
demo: .venv/demo
	rm -rf $(addprefix runs/demo/,$(DEMO))
	for method in $(DEMO); do \
	  $(MALLOC) $(BIN)/python train.py --config=configs/digits.py:$$method \
	    --workdir=runs/demo/$$method || exit 1; \
	done
	$(BIN)/python -m moniqua_jax.plots $(addprefix runs/demo/,$(DEMO)) \
	  --out=runs/demo_report

# A small language model whose workers tell one other 4 bits in one of ten steps.
demo-text: .venv/demo
	rm -rf runs/demo_text
	$(MALLOC) $(BIN)/python train.py --config=configs/text.py:demo \
	  --workdir=runs/demo_text

# results/digits: five seeds of each method of the demo.
results-digits: .venv/installed
	for seed in 0 1 2 3 4; do for method in $(DEMO); do \
	  $(MALLOC) $(BIN)/python train.py --config=configs/digits.py:$$method \
	    --config.seed=$$seed --workdir=runs/digits/$${method}_seed$$seed \
	    || exit 1; \
	done; done
	$(BIN)/python -m moniqua_jax.plots --keep --out=results/digits \
	  $(foreach method,$(DEMO),runs/digits/$(method)_seed*)

# site/index.html; a warning is an error.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# All that protects correctness, over a coffee. What is compiled for TPUs takes
# the time in which the others wait.
test: check .libtpu/libtpu
	$(MAKE) --jobs=2 fast fast-tpu

fast:
	$(PYTEST) $(PARALLEL) --durations=10

fast-tpu:
	$(TPU)

# And all that takes minutes, compiled as users compile it.
test-all: check types audit
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST) -m '' $(PARALLEL) --durations=10
	$(MAKE) test-tpu test-gpu test-versions

# With the oldest versions that pyproject.toml allows, and the newest there are.
test-versions:
	$(PYTHON) tests/versions.py

# Lines and branches that the tests of both tiers run.
coverage: .venv/installed
	$(PYTEST) -m '' $(PARALLEL) --cov --cov-report=term-missing:skip-covered

# Codec, rounds, 8 to 1024 workers, steps: in ratios, on a machine that is idle.
bench: .venv/installed
	$(MALLOC) XLA_FLAGS=--xla_force_host_platform_device_count=8 \
	  $(BIN)/python -m benchmarks.accelerator --size=25600000 --out=runs/bench

# Goes on where it stopped; the verdicts are in results/trust.
mutants: .venv/installed
	$(BIN)/python -m benchmarks.mutants

# Compiles for TPUs without one.
test-tpu: .libtpu/libtpu
	$(TPU) -m ''

# Compiles for GPUs without one: 600 MB.
test-gpu: .cuda/jax_plugins
	PYTHONPATH=.cuda $(PYTEST) -rs tests/test_gpu.py

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: .venv/installed
	$(BIN)/mypy

audit: .venv/installed
	PYTHON=$(PYTHON) .ci/audit

# JAX would look for a TPU at every start if it were in the environment.
.libtpu/libtpu: | .venv/installed
	$(BIN)/pip install --quiet --no-deps --target .libtpu libtpu==0.0.52 || \
	  echo 'libtpu cannot be installed here: nothing is compiled for TPUs.'

# JAX would look for a GPU, too.
.cuda/jax_plugins: | .venv/installed
	$(BIN)/pip install --quiet --no-deps --target .cuda $(CUDA) || \
	  echo 'The CUDA plugin cannot be installed: nothing is compiled for GPUs.'

lint: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf .venv .versions .libtpu .cuda .*_cache .coverage* runs site
