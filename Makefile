# `make run` and `make test` need Python 3.11+ and make, nothing else.
# Written for GNU make 3.81 and later: that is what macOS ships.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
EXTRAS := $(VENV)/installed-extras

.DEFAULT_GOAL := help
.PHONY: help setup run lint types test test-all clean

help: ## say this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(INSTALLED) ## make .venv and install MiniGPT with the tested versions (once)

run: $(INSTALLED) ## train the default preset and print a sample; flags: make run ARGS="--data my.txt"
	$(BIN)/minigpt train $(ARGS)

lint: $(INSTALLED) ## ruff check, ruff format --check, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

types: $(INSTALLED) ## mypy alone
	$(BIN)/mypy

test: lint ## lint, then the tests but for the slower lane
	$(BIN)/python -m pytest -m "not slow"

test-all: test $(EXTRAS) ## make test, then the slower lane, with the extras (the first time it installs them)
	$(BIN)/python -m pytest -m slow

clean: ## remove .venv, caches and builds; what was trained stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist

# Its date is the set-up's: a changed dependency sets up again, an interrupted set-up starts again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  found=`$(PYTHON) -c 'import sys; print("Python %d.%d.%d" % sys.version_info[:3])' 2>/dev/null || echo "not a Python that runs"`; \
	  remedy="install a newer one"; \
	  for newer in python3.11 python3.12 python3.13; do \
	    if $$newer -c '' 2>/dev/null; then remedy="make $(MAKECMDGOALS) PYTHON=$$newer"; fi; \
	  done; \
	  echo "MiniGPT needs Python 3.11 or newer and $(PYTHON) is $$found: $$remedy." >&2; exit 1; }
	@echo "Setting up $(VENV): this happens once and takes a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-input --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

# After the tests of the core, which so have passed without the extras.
$(EXTRAS): $(INSTALLED)
	@echo "Adding the extras to $(VENV): this happens once and takes a few minutes."
	$(BIN)/python -m pip install --no-input --disable-pip-version-check -c constraints.txt -e ".[all,dev]"
	@# A test in JavaScript, which is skipped without.
	-@if command -v npm >/dev/null; then \
	  npm install --ignore-scripts --no-audit --no-fund --prefix $(VENV)/node @huggingface/tokenizers@0.2.0; fi
	@touch $@
