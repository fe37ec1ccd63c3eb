# Every way to build, try and check Pelton. `make` alone lists them.

SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# What `make install` tries, in this order; name another one with `make install PYTHON3=/path/to/python3`.
# The oldest supported Python comes first: what passes on it passes on newer ones.
PYTHON3 := python3.11 python3.12 python3.13 python3 python

# Extra words for the program a target runs: make test ARGS="-k fold -x"
ARGS :=

# Processes that share the tests out, more than two cores: a third of their time is waiting. 0 runs them in one, for a
# debugger.
WORKERS := 3

# A process of the tests that crashes ends the run, which then says where; one that is stuck where no time limit
# reaches it tells where all its threads are, and crashes.
GUARDS := --max-worker-restart=0 -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true

.DEFAULT_GOAL := help
.PHONY: help install demo test fmt lint types it chaos bench ci changelog

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)  ## create .venv and install Pelton with exact, hash-checked versions

demo: $(STAMP)  ## run the ticket pipeline on an embedded Apache Kafka, with two kills on the way
	@$(PYTHON) docs/examples/tickets_demo/demo.py $(ARGS)

test: $(STAMP)  ## run every test but the long fault runs and the benchmarks
	@$(PYTHON) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(GUARDS) -m "not chaos_long and not bench" $(ARGS)

fmt: $(STAMP)  ## format the code, mend what ruff can mend, render the file map of the docs
	@$(PYTHON) -m ruff check --fix --exit-zero --quiet .
	@$(PYTHON) -m ruff format .
	@$(PYTHON) docs/reference/render.py

lint: $(STAMP)  ## check format, lint rules and import contracts
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m ruff check .
	@$(VENV)/bin/lint-imports --no-cache --no-logo

types: $(STAMP)  ## check types, strictly
	@$(PYTHON) -m mypy

it: $(STAMP)  ## run the integration tests: a real Apache Kafka, embedded
	@$(PYTHON) -m pytest -m "integration and not chaos_long and not bench" $(ARGS)

chaos: $(STAMP)  ## run the long fault runs (kills, freezes, broker restarts)
	@$(PYTHON) -m pytest -m chaos_long $(ARGS)

bench: $(STAMP)  ## measure, beside the raw client; writes bench/latest.json
	@PYTHONPATH=tests $(PYTHON) -m benchmarks.run $(ARGS)

ci:  ## run what CI runs
	@.ci/run

changelog: $(STAMP)  ## move the fragments of docs/changelog.d into CHANGELOG.md: make changelog VERSION=0.2.0
	@$(PYTHON) docs/changelog.d/assemble.py $(VERSION)

# uv installs in seconds; it comes from the same hash-checked list. Where it does not run, pip does the same, slower.
$(STAMP): constraints.txt pyproject.toml
	@set -euo pipefail; \
	supported='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(PYTHON) -c "$$supported" >/dev/null 2>&1; then \
	  found=''; \
	  for candidate in $(PYTHON3); do \
	    if "$$candidate" -c "$$supported" >/dev/null 2>&1; then found=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo 'Pelton needs Python 3.11 or newer with the venv module; none of these is one: $(PYTHON3)' >&2; \
	    echo 'Install one (on Debian and Ubuntu with its -venv package), or name it:' >&2; \
	    echo '  make install PYTHON3=/path/to/python3' >&2; \
	    exit 1; \
	  fi; \
	  echo "creating $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv --clear $(VENV); \
	fi; \
	echo 'installing exact versions from constraints.txt'; \
	awk '/^uv==/ { ours = 1 } /^[^ ]/ && !/^uv==/ { ours = 0 } ours' constraints.txt >$(VENV)/uv.txt; \
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(VENV)/uv.txt \
	  && $(VENV)/bin/uv pip install --quiet --python $(PYTHON) --require-hashes -r constraints.txt \
	  || { echo 'uv did not do it (see above); trying pip' >&2; \
	       $(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt; }; \
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	touch $@
