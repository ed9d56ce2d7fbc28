# Every target sets up what it needs: a machine with Python and make is enough.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= 6002
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)

.DEFAULT_GOAL := help
.PHONY: help install run test test-beam test-all check format chaos load bench bench-quick bench-check bench-analytics lock clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## Make .venv with everything in it

$(VENV)/.installed: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade >/dev/null
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

run: install ## Start the edge and a sample bureau, and print requests to paste
	@$(BIN)/broker-edge demo --port $(PORT)

test: install ## Run the whole suite; starts its own Redis and Postgres
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not chaos" $(ARGS)

test-beam: install .venv-beam/.installed ## Run the predecessor's Beam data input against the edge; needs Python 3.12, installs Beam
	@$(BIN)/python -m pytest -n 0 tests_beam $(ARGS)

.venv-beam/.installed: requirements-beam.lock
	@python=$$(command -v python3.12 || true); \
	if [ -n "$$python" ] && ! $$python --version >/dev/null 2>&1; then python=""; fi; \
	for candidate in $$HOME/.pyenv/versions/3.12.*/bin/python; do \
	  if [ -z "$$python" ] && [ -x "$$candidate" ]; then python=$$candidate; fi; done; \
	if [ -z "$$python" ]; then echo "make test-beam needs Python 3.12: the predecessor's Beam nodes run on no older one" >&2; exit 1; fi; \
	$$python -m venv --without-pip .venv-beam
	@$(BIN)/python -m uv pip install --quiet --python .venv-beam/bin/python --require-hashes -r requirements-beam.lock
	@touch $@

test-all: ## Run the suite on every supported Python that is installed
	@found=0; for version in 3.11 3.12 3.13; do \
	  python=$$(command -v python$$version || true); \
	  if [ -n "$$python" ] && ! $$python --version >/dev/null 2>&1; then python=""; fi; \
	  for candidate in $$HOME/.pyenv/versions/$$version.*/bin/python; do \
	    if [ -z "$$python" ] && [ -x "$$candidate" ]; then python=$$candidate; fi; done; \
	  if [ -n "$$python" ]; then found=1; echo "Python $$version"; \
	    $(MAKE) test PYTHON="$$python" VENV=.venv-$$version || exit 1; \
	  else echo "Python $$version is not installed"; fi; \
	done; test $$found = 1

check: install ## Format, lint, types and the rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q -n 0 tests/rules

format: install ## Format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

chaos: install ## Herds twenty times, kill -9 fifty times
	@$(BIN)/python -m pytest -n 0 -m chaos --timeout 1800 tests/scenarios $(ARGS)

load: install ## Offer load with locust: hits, misses, mixed; prints a table
	@for profile in hit miss mixed; do $(BIN)/python -m loadtests.load --profile $$profile $(ARGS) || exit 1; done

bench: install ## Measure beside nginx with Lua, Varnish and others; tables, JSON and a picture in loadtests/results
	@$(BIN)/python -m loadtests.bench $(ARGS)

bench-quick: install ## Hits and misses within two minutes
	@$(BIN)/python -m loadtests.bench --quick $(ARGS)

bench-check: install ## Has the hit path lost speed? ARGS=--accept takes the figure of this run as the new one
	@$(BIN)/python -m loadtests.bench --check $(ARGS)

bench-analytics: install ## Ten million journal rows: what the analytics endpoints take, and what the rows' sums cost
	@$(BIN)/python -m loadtests.analytics $(ARGS)

lock: install ## Renew the locks from pyproject.toml
	@$(BIN)/python -m uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --no-annotate --group dev pyproject.toml -o requirements.lock
	@$(BIN)/python -m uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate -c requirements.lock pyproject.toml -o requirements-runtime.lock
	@$(BIN)/python -m uv pip compile --quiet --upgrade --python-version 3.12 --generate-hashes --no-header --no-annotate --group beam -o requirements-beam.lock

clean: ## Remove what the targets made
	@rm -rf $(VENV) .venv-3.* .venv-predecessor .venv-beam .pytest_cache .mypy_cache .ruff_cache .hypothesis
