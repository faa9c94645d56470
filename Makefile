# Two commands matter: `make up` and `make test`. `make help` lists the rest.
.DEFAULT_GOAL := help
SHELL := /bin/sh
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help setup up down test test-unit test-pythons test-chaos lint format docs proto release-contract lock bench-quick clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: ## create .venv and install everything, once; TORCH=cpu or TORCH=cuda chooses torch's build
	@[ -z "$(TORCH)" ] && [ "$$(cat requirements/*.txt pyproject.toml scripts/setup.sh | cksum)" = "$$(cat .venv/installed 2>/dev/null)" ] \
	  || sh scripts/setup.sh

up: setup ## start everything and wait until it answers
	@exec .venv/bin/uplion up $(ARGS)

down: setup ## stop what `make up ARGS=--detach` started
	@.venv/bin/uplion down $(ARGS)

tools/node_modules/.installed: tools/package-lock.json
	cd tools && npm install --no-save --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

test: setup ## the whole test suite, real servers included
	@$(MAKE) --no-print-directory tools/node_modules/.installed
	pytest -q --durations=10 $(ARGS)

test-unit: setup ## the tests without sockets
	pytest -q tests/unit

test-pythons: setup ## the unit tests on every Python from 3.11 on that is here; ARGS=tests: the whole suite
	@[ -z "$(ARGS)" ] || $(MAKE) --no-print-directory tools/node_modules/.installed
	scripts/test_pythons.sh $(ARGS)

test-chaos: setup ## everything killed under load, for minutes; prints its seed
	pytest -q -s -m chaos

lint: setup ## formatting, types, import rules, the contract
	@$(MAKE) --no-print-directory tools/node_modules/.installed
	ruff format --check .
	ruff check .
	mypy
	lint-imports --no-cache
	python scripts/check_house.py
	scripts/check_contract.sh
	python scripts/generate_docs.py --check

format: setup ## put the code into its format
	ruff format .
	ruff check --fix .

docs: setup ## generate docs/settings.md and docs/metrics.md from the code
	python scripts/generate_docs.py

proto: setup ## generate gen/ from proto/
	scripts/generate.sh

release-contract: setup ## keep the contract of this release, which later ones must be able to read
	@$(MAKE) --no-print-directory tools/node_modules/.installed
	scripts/check_contract.sh release

lock: setup ## pin every dependency anew
	scripts/lock.sh

bench-quick: setup ## the full path with the synthetic engine, in under 90 s
	python -m bench.quick

clean: ## remove what was installed here; state under --state stays
	rm -rf .venv .venvs tools/node_modules
