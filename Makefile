# `make run` runs the pipeline on the real dataset, `make test` checks a change. Each target sets up what it needs.
.DEFAULT_GOAL := help
SHELL := /bin/bash
export PYTHON PORT
PROFILE ?= standard
SEED ?= 0
CANDIDATES ?= 1
THRESHOLD ?= null
POLICY ?= {}
FORCE ?= false
DATASET ?=
RUNS ?= 3
SEEDS ?= $(if $(QUICK),1,5)
RECIPES ?= $(if $(QUICK),quick)
OUT ?= var/bench
WORKERS ?= 2

PARAMETERS = {"profile": "$(PROFILE)", "seed": $(SEED), "candidates": $(CANDIDATES), "accuracy_threshold": $(THRESHOLD), "policy": $(POLICY), "force": $(FORCE)}

.PHONY: help setup run ui minio run-minio secrets cluster run-cluster cluster-down test test-all check unit test-deps coverage mutants shell screenshots docs vendor bench bench-training bench-cluster lock audit-deps sbom pin-images clean

help: ## list all targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## create the environment, fetch the dataset and migrate Airflow's database, if not done yet
	@include/setup

run: setup ## run the whole DAG: make run PROFILE=quick SEED=1 FORCE=true DATASET=digits
	@source include/activate && include/run '$(PARAMETERS)' $(DATASET)

ui: setup ## start Airflow with its UI until Ctrl-C; prints address, user and password: make ui PORT=8080
	@include/ui

minio: setup ## start a MinIO server for development until Ctrl-C; prints address, user and password
	@include/minio develop

run-minio: setup ## run the DAG on S3: with the store in FMNIST_STORE, or the MinIO server for development
	@include/minio run '$(PARAMETERS)' $(DATASET)

secrets: ## complete .env for docker-compose.yaml: add new lines of .env.example, generate missing secrets
	@include/cluster/secrets

cluster: setup ## start Postgres, Redis, MinIO and Airflow with Celery as local processes: make cluster WORKERS=2 PORT=8080
	@source include/activate && python -m tests.support.cluster up --workers $(WORKERS) --port $${PORT:-8080}

run-cluster: setup ## run the DAG on this cluster
	@source include/activate && python -m tests.support.cluster run '$(PARAMETERS)'

cluster-down: setup ## stop the cluster; its data stays
	@source include/activate && python -m tests.support.cluster down

# tests/conftest.py divides the tests into groups and orders them. CI=true installs what they need, and ignores settings
# in the environment that select tests; `make test-all` then fails below a minimum of coverage.
GROUPS = --dist loadscope --no-loadscope-reorder
TESTS = @source include/activate && $(ERASE) python -m tests.support.contain $(PYTEST) --numprocesses 2 $(GROUPS)
UNIT = not integration and not exhaustive
MEASURED = coverage run -m pytest -p tests.support.traced_threads
EMPTY = mkdir -p var/coverage && coverage erase &&
REPORT = && coverage combine --quiet && coverage report --skip-covered --skip-empty
PYTEST = pytest
ERASE =
ENFORCED =
unexport PYTHONPATH COVERAGE_RCFILE
ifneq ($(filter-out false 0,$(CI)),)
unexport PYTEST_ADDOPTS
test-all: PYTEST = $(MEASURED)
test-all: ERASE = $(EMPTY)
test-all: ENFORCED = $(REPORT)
test test-all: test-deps
endif

test: check ## check formatting, lint and types; run unit and integration tests, about ten minutes
	$(TESTS) -m 'not exhaustive'

test-all: check ## run all tests: also sweeps, fault injection, a fresh install, every installed Python; up to 90 minutes
	$(TESTS) $(ENFORCED)

check: setup ## check formatting, lint and types
	@source include/activate && ruff format --check . && ruff check . && mypy

unit: setup ## run the unit tests: no training, no Airflow process, no network; two minutes
	$(TESTS) -m '$(UNIT)'

test-deps: ## install Debian packages for the tests: Postgres, Redis, Chromium, tools; as root
	@include/test-deps

coverage: PYTEST = $(MEASURED)
coverage: ERASE = $(EMPTY)
coverage: setup ## run the tests of `make test` with branch coverage; fails below 97.5%
	$(TESTS) -m 'not exhaustive' $(REPORT)

mutants: setup ## run mutation tests on the modules that decide about promotion; ten minutes
	@source include/activate && exec python -m tests.support.contain python -m tests.support.mutants

shell: setup ## open a shell with airflow, fmnist and pytest set up for this project
	@bash --init-file include/activate -i

screenshots: setup ## retake the pictures in docs/images: twelve weeks of runs on the real images; half an hour
	@source include/activate && exec python -m tests.support.contain python -m tests.support.screenshots docs/images

docs: setup ## generate the command reference docs/cli.md
	@source include/activate && typer fmnist_tasks.cli utils docs --name fmnist --title 'Command line' --output docs/cli.md

vendor: ## copy the Releases page's libraries from npm, in the versions of include/page/vendor/package-lock.json
	@cd include/page/vendor && npm ci --ignore-scripts --no-audit --no-fund && \
		cp node_modules/uplot/dist/uPlot.iife.min.js node_modules/uplot/dist/uPlot.min.css node_modules/uplot/LICENSE . && \
		rm -rf node_modules

bench: setup ## measure time and memory of the pipeline: make bench RUNS=3 PROFILE=standard
	@source include/activate && python -m bench.pipeline --runs $(RUNS) --profile $(PROFILE)

bench-training: setup ## compare the training profiles with a baseline; hours, or minutes with: make bench-training QUICK=1
	@source include/activate && python -m bench.training --runs $(SEEDS) --recipes '$(RECIPES)' --out $(OUT)

bench-cluster: setup ## measure Airflow's overhead, candidates on several workers, a million images; an hour, as root
	@source include/activate && python -m bench.cluster

lock: ## update requirements.txt, the lock file of pyproject.toml
	@source include/activate && uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --group dev --custom-compile-command 'make lock' pyproject.toml -o requirements.txt

audit-deps: setup ## check the lock file and MinIO for known vulnerabilities, and end-of-support dates; needs Go
	@source include/activate && python -m deploy.supply_chain.audit

sbom: setup ## write bills of materials of the lock file, and of MinIO if it was built here, to var/sbom
	@source include/activate && python -m deploy.supply_chain.sbom

pin-images: setup ## pin the base images to their current digests; needs Go
	@source include/activate && python -m deploy.supply_chain.images

clean: ## delete the environment and all results, including releases
	rm -rf .venv var
