# Everything happens in .venv, from locks with hashes. A target's text after `##` is what `make help` prints.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help up console demo test screenshots test-faults test-browser test-agents test-fuzz fuzz flood fuzz-uris lint types bench lock clean

PYTHON ?= python3
# More than cores: much of what tests do is wait for servers.
WORKERS ?= 4
# Dozens of processes start in a run of the tests: each would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# Not from a cache: uv trusts what it has there, and pip looks at the hashes of what it has. pip, which reads a
# configuration that uv does not, is tried where uv could not fetch; the hashes are the same.
INSTALL = $(BIN)/uv pip install -q --no-cache --python $(BIN)/python --compile-bytecode --require-hashes -r $< || \
	{ echo 'uv could not install: trying pip, which takes longer' >&2; $(PIP) install --force-reinstall --require-hashes -r $<; }
LOCK := $(BIN)/pip-compile -q --generate-hashes --strip-extras --allow-unsafe --no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links
# The files that have tests of a kind: to import all others takes each process five seconds.
having = $$(grep -rl --include='test_*.py' 'mark\.$(1)' tests)
TYPED := $(wildcard contracts services deploy examples tests benchmarks)

# A .venv whose Python is gone (moved, upgraded away) is made anew.
$(shell test -x $(BIN)/python || rm -f .venv/*.stamp)

help: ## Print this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

up: .venv/up.stamp .venv/editable.stamp ## Start everything at http://127.0.0.1:8080; Ctrl-C stops it; data is kept in .grantbook
	@exec $(BIN)/python -m deploy.dev up

console: .venv/up.stamp .venv/editable.stamp ## Print a link that signs in to the console of `make up`
	@$(BIN)/python -m deploy.dev link

demo: .venv/demo.stamp .venv/editable.stamp ## Start everything, an identity provider and an MCP server beside it, and say what to try
	@exec $(BIN)/python -m deploy.dev demo

test: .venv/dev.stamp .venv/editable.stamp ## Run the tests, on real servers (about three minutes on two cores)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -p no:schemathesis --ignore tests/system/test_fuzz.py \
		-m "not faults and not browser and not agents and not fuzz"

screenshots: .venv/dev.stamp .venv/editable.stamp ## Take the README's pictures anew (Debian's chromium)
	$(BIN)/python -m tests.console.screenshots

test-faults: .venv/dev.stamp .venv/editable.stamp ## Run the tests that race and kill servers and processes
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m faults $(call having,faults)

test-browser: export PATH := $(CURDIR)/$(BIN):$(PATH)
test-browser: .venv/dev.stamp .venv/editable.stamp ## Run the tests of the console's pages, and all that ask a browser (Debian's chromium)
	npm ci --prefix tests/console/axe --ignore-scripts --no-audit --no-fund --loglevel=error
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m browser $(call having,browser)

test-agents: export PATH := $(CURDIR)/$(BIN):$(PATH)
test-agents: .venv/dev.stamp .venv/editable.stamp ## Run the tests with real agents of npm
	npm ci --prefix tests/agents --ignore-scripts --no-audit --no-fund --loglevel=error
	npm ci --prefix tests/console/provider --ignore-scripts --no-audit --no-fund --loglevel=error
	npm ci --prefix examples/node --ignore-scripts --no-audit --no-fund --loglevel=error
	$(BIN)/python -m pytest -q -m agents $(call having,agents)

test-fuzz: .venv/dev.stamp .venv/editable.stamp ## Run 5,000 hostile inputs, and a flood of 20,000 registrations
	$(BIN)/python -m pytest -q -m fuzz $(or $(ONLY),$(call having,fuzz))

fuzz: .venv/dev.stamp .venv/editable.stamp ## The same with 100,000 inputs: about half an hour
	GRANTBOOK_INPUTS=100000 $(BIN)/python -m pytest -q -m fuzz tests/system/test_fuzz.py

flood: .venv/dev.stamp .venv/editable.stamp ## The same with a flood of 1,000,000 registrations
	GRANTBOOK_FLOOD=1000000 $(BIN)/python -m pytest -q -m fuzz tests/system/test_flood.py

fuzz-uris: .venv/dev.stamp .venv/editable.stamp ## Ask the browser about 100,000 URIs
	GRANTBOOK_URIS=100000 $(BIN)/python -m pytest -q -m browser tests/appraisal

lint: .venv/dev.stamp ## Check style, layout and declared dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/deptry .

types: .venv/dev.stamp .venv/editable.stamp ## Check types
	$(BIN)/python -m mypy --strict $(TYPED)

bench: export PATH := $(CURDIR)/$(BIN):$(PATH)
bench: .venv/dev.stamp .venv/editable.stamp ## Measure, beside the machine's raw limits and other registrars: about an hour, 40 GB of disk
	npm ci --prefix benchmarks/peers --ignore-scripts --no-audit --no-fund --loglevel=error
	$(BIN)/python -m benchmarks --record docs/benchmarks

lock: .venv/dev.stamp ## Resolve pyproject.toml anew into requirements/
	$(LOCK) --upgrade -o requirements/install.txt requirements/install.in
	$(LOCK) --upgrade --extra build --extra cli --extra embedded --extra server -o requirements/up.txt pyproject.toml
	$(LOCK) --upgrade --extra build --extra cli --extra demo --extra embedded --extra server -c requirements/up.txt -o requirements/demo.txt pyproject.toml
	$(LOCK) --upgrade --all-extras -c requirements/demo.txt -o requirements/dev.txt pyproject.toml

clean: ## Delete the data of `make up` and all caches; .venv itself stays
	rm -rf .grantbook .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed; $(PYTHON) is not. Name one: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	@echo 'Making .venv'
	@$(PYTHON) -m venv --clear .venv
	@touch $@

# A machine that uv is not built for goes without.
.venv/install.stamp: requirements/install.txt | .venv/made.stamp
	@$(PIP) install --only-binary :all: --require-hashes -r $< && touch $@ || echo 'uv could not be installed' >&2

.venv/up.stamp: requirements/up.txt | .venv/install.stamp
	@echo 'Installing $<'
	@$(INSTALL)
	@touch $@

.venv/demo.stamp: requirements/demo.txt | .venv/install.stamp
	@echo 'Installing $<'
	@$(INSTALL)
	@touch $@

.venv/dev.stamp: requirements/dev.txt | .venv/install.stamp
	@echo 'Installing $<'
	@$(INSTALL)
	@touch $@

# Either lock brings the build backend, so nothing is fetched here.
.venv/editable.stamp: pyproject.toml | .venv/made.stamp
	@test -e .venv/dev.stamp || test -e .venv/demo.stamp || $(MAKE) -s --no-print-directory .venv/up.stamp
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@
