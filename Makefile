# make demo: convert the quickstart model and show the result.  make test: lint, types, floors, tests.
# Both make .venv first and need only Python 3.11 or later, pip and make.

VENV ?= .venv
PYTHON ?= $(firstword $(foreach name,python3.11 python3,$(shell $(name) -c 'import sys; sys.version_info >= (3, 11) and print("$(name)")' 2>/dev/null)) python3)
BIN := $(VENV)/bin

# one place for exact versions, also of what builds the package: older pips read the first for that, newer the second
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Container images like to set this; every process then compiles all of edgeopt anew, and the tests start hundreds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test venv lint types floors tests bench bench-latency peers clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/edgeopt convert recipes/quickstart --out out/quickstart

test: lint types floors tests

venv: $(VENV)/.dev

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

floors: $(VENV)/.dev
	$(BIN)/lint-imports

tests: $(VENV)/.dev
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 15

# Speed and fidelity beside the peers: benchmarks/README.md. The LiteRT peers' environment is 3 GB and made only by `peers`.
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

# Fits the latency predictor, judges it on held-out rows, and writes hardware_profiles/packs.
bench-latency: $(VENV)/.dev
	$(BIN)/python -m benchmarks.latency --write --packs

peers: $(VENV)/.dev
	$(BIN)/python -m benchmarks.peer_environment

# A stamp is written when its install is complete; without it the install runs again.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgeopt needs Python 3.11 or later: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.demo

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[torch,coreml]'
	touch $@

clean:
	rm -rf $(VENV) out
