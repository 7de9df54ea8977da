# make demo   the whole journey on real data      make test   every quick test
# make check  ruff, mypy, import-linter            make bench  the measured tables
# make coverage   the quick tests, and which lines they ran
# make gpu    the tests that need a CUDA device, each named when it ends, then its table
# Each target sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test coverage test-all check bench gpu clean

setup: .venv/.ready

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/routespace demo --out runs/demo

# A process for each core, with one thread each, and what was compiled is kept for those that tests start.
TEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n auto --dist worksteal

test: setup
	$(TEST)

# The same, and the lines that ran are counted, which takes half as long again; fewer than the floor in pyproject.toml fail.
coverage: setup
	$(TEST) --cov --cov-report=term:skip-covered

test-all: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	for script in cost routing small supernet subnets latency memory first_word; do $(BIN)/python benchmarks/$$script.py || exit 1; done

gpu: setup
	$(BIN)/python -m pytest -m gpu -vv -rf
	$(BIN)/python benchmarks/gpu.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
