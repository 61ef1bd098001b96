# `make help` lists the targets. All commands run in .venv, which `make setup` creates.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=
JOBS ?= 2

# Runs need no network.
export HF_HUB_OFFLINE ?= 1
export WANDB_MODE ?= offline

.DEFAULT_GOAL := help
NAME ?=

.PHONY: help setup demo study test test-fast coverage lint format docs docs-serve clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY)  ## create the environment in .venv

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "expected Python 3.10 or later, got $$($(PYTHON) --version); choose another one: make setup PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)  ## train on the glyphs dataset, three to nine minutes on two cores
	$(BIN)/ret-train experiment=demo $(ARGS)

# A repeated call runs only missing jobs, and updates the tables and the figure of the study.
study: $(READY)  ## run a study of experiments/, e.g. NAME=gates
	@test -f 'experiments/$(NAME)/study.yaml' || { echo "NAME='$(NAME)': no such study; example: make study NAME=gates; choices: $$(cd experiments && echo */study.yaml | sed 's|/study.yaml||g')"; exit 1; }
	$(BIN)/ret-train --config-dir experiments/$(NAME) --config-name study $(ARGS)
	$(BIN)/ret-report --config-dir experiments/$(NAME) --config-name comparison
	cp runs/studies/$(NAME)/report/results.md runs/studies/$(NAME)/report/results.csv runs/studies/$(NAME)/report/results.png experiments/$(NAME)/

test: $(READY)  ## run all tests, JOBS files at a time
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

test-fast: $(READY)  ## run the tests that take at most a few seconds
	$(BIN)/python -m pytest -m 'not slow' --numprocesses $(JOBS) --dist loadfile $(ARGS)

lint: $(READY)  ## check style, formatting, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell README.md CHANGELOG.md CONTRIBUTING.md docs/pages conf ret_lightning experiments
	$(BIN)/python tests/support/retired_phrases.py

coverage: $(READY)  ## run the tests that take at most a few seconds, and print the coverage of each file
	$(BIN)/python -m pytest -m 'not slow' --numprocesses $(JOBS) --dist loadfile --cov --cov-report term $(ARGS)

format: $(READY)  ## fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# DOCS_BIN: the bin folder of another environment that has zensical, mkdocstrings-python, hydra-core and lazy-loader.
DOCS_BIN ?= $(BIN)

docs: $(if $(filter $(BIN),$(DOCS_BIN)),$(READY))  ## build the documentation into docs/site, without a network
	$(DOCS_BIN)/python docs/generate.py
	cd docs && $(abspath $(DOCS_BIN))/zensical build --strict --clean
	$(DOCS_BIN)/python docs/check.py

docs-serve: $(if $(filter $(BIN),$(DOCS_BIN)),$(READY))  ## serve the documentation and rebuild it on changes
	$(DOCS_BIN)/python docs/generate.py
	cd docs && $(abspath $(DOCS_BIN))/zensical serve

clean:  ## remove the environment and build outputs
	rm -rf $(VENV) build dist *.egg-info docs/site docs/.cache
