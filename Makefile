# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# One thread a platform: several platforms share the cores.
export OMP_NUM_THREADS ?= 1
# Threads that allocate large arrays must not each keep a heap of their own.
export MALLOC_ARENA_MAX ?= 2

.PHONY: demo test check bench clean
.DEFAULT_GOAL := demo

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: $(VENV)/.installed  ## three platforms, one coordinator, one table and a report
	$(BIN)/python -m simulations --at-once 2 --out demo-report --figures demo-report/figures.json

check: $(VENV)/.installed-dev  ## formatter, linter, strict types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check  ## the whole gate
	$(BIN)/python -m pytest

bench: $(VENV)/.installed-dev  ## every figure, written to benchmarks/results
	$(BIN)/python benchmarks/cleaning.py
	$(BIN)/python benchmarks/round_overhead.py
	$(BIN)/python benchmarks/secagg.py
	$(BIN)/python benchmarks/secagg_round.py
	$(BIN)/python benchmarks/secagg_transcript.py
	$(BIN)/python benchmarks/dp_step.py
	$(BIN)/python benchmarks/dp_audit.py
	$(BIN)/python benchmarks/dp_quality.py
	$(BIN)/python benchmarks/psi.py
	$(BIN)/python benchmarks/link.py
	$(BIN)/python benchmarks/onboarding.py
	$(BIN)/python benchmarks/chaos.py
	$(BIN)/python benchmarks/fuzz.py
	$(BIN)/python benchmarks/quality/xmrec.py
	$(BIN)/python benchmarks/quality/amazon3.py
	$(BIN)/python benchmarks/quality/complete_journey.py
	$(BIN)/python benchmarks/quality/convergence.py
	$(BIN)/python benchmarks/quality/ablation.py
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	$(BIN)/python benchmarks/quality/speed.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/setup.py

clean:
	rm -rf $(VENV) demo-report build *.egg-info
