# Two commands matter to a new user: `make serve` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
SERVE_ARGS ?=
TEST_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links
BENCHES := ingress tools channel

.PHONY: help install install-dev serve test check format bench docker-up lock clients clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## create .venv with toolhost in it, from the locked versions

install-dev: $(INSTALLED_DEV)

$(BIN)/python:
	.ci/ensure-python "$(PYTHON)"
	"$(PYTHON)" -m venv $(VENV)

$(INSTALLED): requirements.lock pyproject.toml | $(BIN)/python
	@echo 'installing the locked packages into $(VENV); the first time this takes about a minute' >&2
	@$(PIP) install --quiet --require-hashes --requirement requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(INSTALLED_DEV): requirements-dev.lock $(INSTALLED)
	@echo 'installing what tests and checks need into $(VENV)' >&2
	@$(PIP) install --quiet --require-hashes --requirement requirements-dev.lock
	@touch $@

serve: $(INSTALLED) ## run a host with a shell and jobs; SERVE_ARGS="--port 0" for more
	@$(BIN)/toolhost serve $(SERVE_ARGS)

test: $(INSTALLED_DEV) ## run everything this machine can run; says at its end what was skipped and why
	@$(BIN)/python -m tests.clients.install || echo 'note: the real MCP clients could not be installed; tests that drive them are reported as skipped'
	$(BIN)/python -m pytest $(TEST_ARGS)

check: $(INSTALLED_DEV) ## format, lint, types, import contracts, then the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest $(TEST_ARGS)

format: $(INSTALLED_DEV) ## format the code and apply safe lint fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(INSTALLED_DEV) ## run the benchmarks with their floors
	@for name in $(BENCHES); do echo "== $$name"; $(BIN)/python -m bench.$$name; done

docker-up: ## start a Docker daemon of this checkout's own (root); prints its DOCKER_HOST
	@.ci/dockerd

# Two files: what a user runs stays small (no Node, no mypy), and the second takes every version of the first.
lock: $(INSTALLED_DEV) ## lock again the versions that pyproject.toml asks for
	$(LOCK) --group build pyproject.toml --output-file requirements.lock
	$(LOCK) --group dev --group build --constraint requirements.lock pyproject.toml --output-file requirements-dev.lock

clients: $(INSTALLED_DEV) ## install the real MCP clients that the tests drive
	$(BIN)/python -m tests.clients.install

clean: ## remove what the build and the tests left, and the environment
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find sdk toolhost agents tests bench examples -type d -name __pycache__ -prune -exec rm -rf {} +
