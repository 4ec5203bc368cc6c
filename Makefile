# `make demo` and `make test` are the two commands; `make help` lists the rest.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The PostgreSQL beside the embedded 18 that migrations and queue are tested against: what the system has.
OLD_POSTGRES = $(firstword $(sort $(patsubst /usr/lib/postgresql/%/bin/initdb,%,$(wildcard /usr/lib/postgresql/1[4-7]/bin/initdb))))

.PHONY: help setup demo test unit machine old-postgres check agent boot bench footprint mutations chaos-long clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name what; do printf '%-14s %s\n' "make $$name" "$$what"; done

demo:  ## from nothing to a picture: sets up, runs a real ffmpeg job, shows its callback (VIDEO=path for your own clip)
	@PYTHON=$(PYTHON) scripts/system.sh install demo
	@$(MAKE) setup
	@scripts/system.sh run $(BIN)/rgrid demo $(if $(VIDEO),--video '$(VIDEO)')

test:  ## sets up and passes every test: PostgreSQL 18 and an older one, S3, Docker
	@PYTHON=$(PYTHON) scripts/system.sh install test
	@$(MAKE) setup
	@$(MAKE) check
	@scripts/system.sh run $(MAKE) -j2 unit machine

# Two parts side by side: most of the second one is waiting for containers and leases.
MACHINE_TESTS := tests/nodes tests/attacks tests/e2e tests/chaos tests/gateway/test_up.py tests/gateway/test_demo.py

unit: setup
	@echo "== tests, PostgreSQL 18"
	@$(BIN)/python -m pytest -q $(addprefix --ignore=,$(MACHINE_TESTS) tests/boot)
	@$(MAKE) old-postgres

machine: setup
	@echo "== tests of nodes and of whole instances, Docker"
	@$(BIN)/python -m pytest -q $(MACHINE_TESTS)
	@echo "== a rented server, from its purchase to its deletion"
	@$(BIN)/python -m pytest -q tests/boot

old-postgres: setup
	@echo "== migrations and queue, PostgreSQL $(OLD_POSTGRES)"
	@test -n "$(OLD_POSTGRES)" || { echo "no PostgreSQL 14 to 17 under /usr/lib/postgresql" >&2; exit 1; }
	@RGRID_TEST_POSTGRES=$(OLD_POSTGRES) $(BIN)/python -m pytest -q tests/test_database.py tests/scheduler

setup: $(STAMP)  ## .venv with .venv/bin/rgrid

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "RGrid needs Python 3.11 or later; name one with PYTHON=…" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Making $(VENV) (once, about a minute)"; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

check: setup  ## ruff, mypy --strict, import contracts
	@echo "== ruff, mypy, import contracts"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

agent: setup  ## the agent's files for rented nodes, in dist/agent: one for each Python and processor
	@$(BIN)/python scripts/build_agent.py

boot: setup  ## a rented server from its purchase to its deletion: real systemd, cloud-init and Docker, 2 minutes
	@PYTHON=$(PYTHON) scripts/system.sh install boot
	@scripts/system.sh run $(BIN)/python -m pytest -q tests/boot

bench: setup  ## what RGrid costs beside what one would do without it, a few minutes (ARGS='--save FILE' keeps every round)
	@scripts/system.sh run $(BIN)/python -m tests.bench $(ARGS)

footprint: setup  ## what rgrid up takes while nothing happens, and the agent's memory while it moves 2 GB
	@scripts/system.sh run $(BIN)/python -m tests.bench.footprint

mutations: setup  ## 10,000 broken requests to a webhook of each scheme: none may be answered with 500
	@RGRID_MUTATIONS=10000 $(BIN)/python -m pytest -q tests/gateway/test_hook_mutations.py

chaos-long: setup  ## the faults of tests/chaos with the default lease of 20 s
	@RGRID_CHAOS_LONG=1 scripts/system.sh run $(BIN)/python -m pytest -q -m chaos tests/chaos

clean:  ## removes what the targets above made here
	@rm -rf $(VENV) .cache demo-output dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
