# make help lists the targets. Everything runs in .venv, which `setup` makes.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=
JOBS ?= 2

# Keeps runs off the network and quiet about it.
export HF_HUB_OFFLINE ?= 1
export WANDB_MODE ?= offline

.DEFAULT_GOAL := help
NAME ?=

.PHONY: help setup demo study test test-fast lint format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY)  ## make the environment in .venv, if it is not there

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or later is needed, $(PYTHON) is $$($(PYTHON) --version); name another one: make setup PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)  ## train on the glyphs corpus, three to nine minutes on two cores
	$(BIN)/ret-train experiment=demo $(ARGS)

# Again: what is missing is run, and the tables and the picture beside the study are made anew.
study: $(READY)  ## redo a study of experiments/, NAME=gates for one
	@test -f 'experiments/$(NAME)/study.yaml' || { echo "there is no study '$(NAME)'; name one: make study NAME=gates; there are: $$(cd experiments && echo */study.yaml | sed 's|/study.yaml||g')"; exit 1; }
	$(BIN)/ret-train --config-dir experiments/$(NAME) --config-name study $(ARGS)
	$(BIN)/ret-report --config-dir experiments/$(NAME) --config-name comparison
	cp runs/studies/$(NAME)/report/results.md runs/studies/$(NAME)/report/results.csv runs/studies/$(NAME)/report/results.png experiments/$(NAME)/

test: $(READY)  ## the whole test suite, JOBS files at a time
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

test-fast: $(READY)  ## the tests that take less than a few seconds
	$(BIN)/python -m pytest -m 'not slow' --numprocesses $(JOBS) --dist loadfile $(ARGS)

lint: $(READY)  ## check style, formatting and the floors of the package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(READY)  ## mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and what builds left
	rm -rf $(VENV) build dist *.egg-info
