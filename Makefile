# `make demo` and `make test` need Python 3.11 or newer and make, no more.
PYTHON ?= python3
BIN := .venv/bin
# Temporaries above 32 MB cost a page fault each step; keep them in the heap.
MALLOC := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=68719476736 \
  MALLOC_TOP_PAD_=268435456
DEMO := dpsgd moniqua4 moniqua1

.PHONY: demo results-digits docs test test-slow test-tpu lint clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,notebooks,benchmarks,docs,mpi,dev]'
	touch $@

# Eight workers on a ring: full precision, 4 bits and 1 bit; then one table.
demo: .venv/installed
	rm -rf $(addprefix runs/demo/,$(DEMO))
	for method in $(DEMO); do \
	  $(MALLOC) $(BIN)/python train.py --config=configs/digits.py:$$method \
	    --workdir=runs/demo/$$method || exit 1; \
	done
	$(BIN)/python -m moniqua_jax.plots $(addprefix runs/demo/,$(DEMO)) \
	  --out=runs/demo/report

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

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2
	$(MAKE) test-tpu

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

# Compiles for TPUs without one. libtpu stays out of the environment, where JAX
# would look for a TPU at every start.
test-tpu: .venv/installed .libtpu/libtpu
	PYTHONPATH=.libtpu $(BIN)/python -m pytest -rs -m slow tests/test_tpu.py

.libtpu/libtpu: | .venv/installed
	$(BIN)/pip install --quiet --no-deps --target .libtpu libtpu==0.0.52 || \
	  echo 'libtpu cannot be installed here: nothing is compiled for TPUs.'

lint: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .libtpu runs site
