# `make demo`, `make paper` and `make test` do all the set-up on a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo paper test test-slow lint types layers check bench clean

demo: $(READY)
	$(BIN)/portend demo --out runs/demo

# The paper's evaluation on this machine, as runs/paper/report.html; LONG=1 measures more, in runs/paper-long.
paper: $(READY)
	$(BIN)/python benchmarks/paper.py $(if $(LONG),--long --out runs/paper-long,--out runs/paper)

# Tests start hundreds of processes: what they import is compiled once, also where the environment forbids it.
test: $(READY)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

check: lint types layers test

bench: $(READY)
	$(BIN)/python benchmarks/planner.py --json runs/bench-planner.json
	$(BIN)/python benchmarks/serialization.py --json runs/bench-serialization.json

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Portend needs Python 3.11 or newer; set PYTHON=python3.12, say"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $(READY)
