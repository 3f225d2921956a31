# Everything starts from a machine with Python 3.11 or newer and a C++ compiler; each target does its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: .venv demo test check gpu wheel clean

.venv: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(STAMP)

demo: $(STAMP)  ## train, export, reload and talk to a small model on two CPU ranks under ZeRO-3
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/demo.py

# Two workers, each of which takes the next test when it is free: whole runs last a minute, most others a hundredth of that. A thread each:
# the threads of two workers on two cores wait for each other at every product, and a test then takes ten times as long.
test: $(STAMP)  ## the default suite: CPU, no network
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 --dist loadgroup

check: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy moss_train

gpu: $(STAMP)  ## every test that needs a CUDA device, then the benchmarks; goes on where it was stopped
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/gpu.py $(if $(MINUTES),--minutes $(MINUTES))

wheel: $(STAMP)
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
