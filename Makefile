# AstrID's commands. Each does all the set-up it needs; run `make help` for the list.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo dev test lint format bench readme audit lock clean environment environment-run chromium

PYTHON := .venv/bin/python
ASTRID := .venv/bin/astrid
WORKERS ?=
TESTS ?= astrid_pipeline_tests

help: ## Show what can be made
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | \
	  awk -F ':.*## ' '{printf "  \033[1mmake %-8s\033[0m %s\n", $$1, $$2}'

environment-run:
	@scripts/environment.sh run

environment:
	@scripts/environment.sh test

chromium:
	@scripts/chromium.sh

demo: environment-run ## Take a simulated survey from raw frames to detections and a trained model (about 10 minutes)
	@$(ASTRID) demo $(if $(WORKERS),--workers $(WORKERS))

dev: environment-run ## Start everything a person works with; Ctrl-C ends it
	@$(ASTRID) dev

test: environment chromium ## Run the whole test suite (TESTS=path runs part of it)
	@$(PYTHON) -m pytest $(TESTS) $(PYTEST_ARGS)

lint: environment ## Check style and types
	@$(PYTHON) -m ruff check astrid_pipeline astrid_pipeline_tests
	@$(PYTHON) -m ruff format --check astrid_pipeline astrid_pipeline_tests
	@$(PYTHON) -m mypy
	@$(PYTHON) scripts/readme.py --check

format: environment ## Put the code into the house style
	@$(PYTHON) -m ruff check --fix astrid_pipeline astrid_pipeline_tests
	@$(PYTHON) -m ruff format astrid_pipeline astrid_pipeline_tests

bench: environment ## Measure the differencing beside its peers (BENCH_ARGS=--full: longer)
	@$(PYTHON) -m astrid_pipeline_tests.benchmarks $(BENCH_ARGS)

readme: environment ## Write the README's configuration table from the settings
	@$(PYTHON) scripts/readme.py

audit: environment ## Ask whether the pinned packages have known vulnerabilities (AUDIT_SERVICE=osv: another service)
	@$(PYTHON) scripts/audit.py

lock: ## Write the locks with hashes, from pyproject.toml and the versions in constraints.txt
	@test -x .venv/bin/uv || scripts/environment.sh test
	@$(PYTHON) scripts/lock.py

clean: ## Remove the environment and caches; products and databases under ASTRID_HOME stay
	@rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
