# make demo and make test set everything up by themselves; PYTHON=python3.12 make setup takes another interpreter.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV
# Without its bytecode each of Ray's processes would compile raymat anew, half a second each.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The first interpreter that raymat supports; 3.11 is the one it is tested with.
SUPPORTED := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))
ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3.10 python3; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && { echo $$p; break; }; done)
endif

.PHONY: help setup demo quick test chaos hosts lint types format hooks docs package hashes licences bench cuda-dry-run clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## install raymat with its tested dependencies into .venv

$(STAMP): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'no Python 3.10 to 3.13 found: make setup PYTHON=/path/to/python3.11' >&2; exit 2; }
	@$(PYTHON) -c '$(SUPPORTED)' || { echo 'raymat needs Python 3.10 to 3.13, $(PYTHON) is another' >&2; exit 2; }
	@# An interrupted setup may have left an environment without pip, which --clear makes anew.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@# Python compiles what is imported; all of torch and Ray would take a minute of each setup.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup ## train both stages on synthetic pictures, kill a worker halfway, resume (minutes on 2 cores)
	$(BIN)/raymat demo

# Much of a test's time is waiting for processes that start: more files at a time than there are cores, the longest first.
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder

quick: setup ## the tests below cluster/ that take no time: in a minute, for the working day
	$(BIN)/python -m pytest $(PARALLEL) --durations=10 -m 'not slow and not chaos' --ignore=tests/cluster --ignore=tests/chaos

test: setup ## all tests but the long kill tests
	$(BIN)/python -m pytest $(PARALLEL) --durations=15

chaos: setup ## the long kill tests
	$(BIN)/python -m pytest -m chaos

hosts: setup ## a cluster of three hosts on this machine, one lost, one told to go, one come (root; minutes)
	$(BIN)/python -m tests.hosts

lint: setup ## style, and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## rewrite the files as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup ## type check
	$(BIN)/mypy

hooks: ## have git check style and types before each commit, with the tools of .venv
	git config core.hooksPath .githooks

DOCS := .venv-docs

$(DOCS)/.installed: docs/requirements.txt
	@test -n '$(PYTHON)' || { echo 'no Python 3.10 to 3.13 found: make docs PYTHON=/path/to/python3.11' >&2; exit 2; }
	@$(DOCS)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@touch $@

docs: $(DOCS)/.installed ## the site, in site/: open site/index.html, no server and no network is needed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet

CUDA := .venv-cuda

# torch's own wheels for Linux know CUDA. Where pip is set to take another, say from an index of CPU builds, it must not be.
$(CUDA)/.installed: pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'no Python 3.10 to 3.13 found: make cuda-dry-run PYTHON=/path/to/python3.11' >&2; exit 2; }
	@$(CUDA)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(CUDA)
	PIP_CONFIG_FILE=/dev/null PIP_CONSTRAINT= PIP_FIND_LINKS= PIP_EXTRA_INDEX_URL= $(CUDA)/bin/python -m pip install --quiet \
		--disable-pip-version-check --no-compile -c constraints.txt -e . pytest pytest-timeout
	@touch $@

cuda-dry-run: $(CUDA)/.installed ## what can be tried of CUDA without a card (an environment of 5 GB; minutes)
	$(CUDA)/bin/python -m pytest tests/cuda

package: setup ## wheel and sdist, in dist/
	$(BIN)/python -m build --quiet --outdir dist .

hashes: ## all versions with the digests of their files, in dist/requirements.txt (needs uv)
	@mkdir -p dist
	uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-header --no-annotate -c constraints.txt \
		--extra aws --extra azure --extra gcs --extra gpu --extra onnx pyproject.toml -o dist/requirements.txt

licences: setup ## write docs/licences.md from what is installed
	$(BIN)/python -m tests.support.licences > docs/licences.md

bench: ## list the scripts that print the README's figures
	@for f in benchmarks/*.py; do test ! -e "$$f" || echo "$(BIN)/python $$f"; done

clean: ## remove the environment and what tools left behind; runs/ stays
	rm -rf $(VENV) $(DOCS) $(CUDA) site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
