# `make run` trains and promotes on the real dataset; `make test` checks a change. Each sets up what it needs.
.DEFAULT_GOAL := help
SHELL := /bin/bash
export PYTHON PORT
PROFILE ?= standard
SEED ?= 0
CANDIDATES ?= 1
THRESHOLD ?= null
POLICY ?= {}
FORCE ?= false
RUNS ?= 3
SEEDS ?= $(if $(QUICK),1,5)
RECIPES ?= $(if $(QUICK),quick)
OUT ?= var/bench
WORKERS ?= 2

PARAMETERS = {"profile": "$(PROFILE)", "seed": $(SEED), "candidates": $(CANDIDATES), "accuracy_threshold": $(THRESHOLD), "policy": $(POLICY), "force": $(FORCE)}

.PHONY: help setup run ui minio run-minio secrets cluster run-cluster cluster-down test test-all check unit test-deps coverage mutants shell screenshots bench bench-training bench-cluster lock audit-deps sbom pin-images clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## create the environment, fetch the dataset, migrate Airflow's database, unless they are there
	@include/setup

run: setup ## run the whole DAG on the real images: make run PROFILE=quick SEED=1 FORCE=true
	@source include/activate && include/run '$(PARAMETERS)'

ui: setup ## start Airflow with its UI here, until Ctrl-C; prints address, user and password: make ui PORT=8080
	@include/ui

minio: setup ## start a MinIO server for development, until Ctrl-C; prints address, user and password
	@include/minio develop

run-minio: setup ## run the same DAG with MinIO as its store: the one in FMNIST_STORE, or the one for development
	@include/minio run '$(PARAMETERS)'

secrets: ## complete .env, for docker-compose.yaml: new lines of .env.example, and secrets
	@include/cluster/secrets

cluster: setup ## start Postgres, Redis, MinIO and Airflow with Celery as processes here: make cluster WORKERS=2 PORT=8080
	@source include/activate && python -m tests.support.cluster up --workers $(WORKERS) --port $${PORT:-8080}

run-cluster: setup ## run the same DAG on that cluster
	@source include/activate && python -m tests.support.cluster run '$(PARAMETERS)'

cluster-down: setup ## stop the cluster; its data stays
	@source include/activate && python -m tests.support.cluster down

# Tests run in groups, which tests/conftest.py forms and orders. CI=true asks for more: what they need is installed, their
# coverage is measured and must suffice, and nothing of the caller's environment chooses which of them run.
GROUPS = --dist loadscope --no-loadscope-reorder
TESTS = @source include/activate && $(ERASE) python -m tests.support.contain $(PYTEST) --numprocesses 2 $(GROUPS)
UNIT = not integration and not exhaustive
MEASURED = coverage run -m pytest
EMPTY = mkdir -p var/coverage && coverage erase &&
REPORT = && coverage combine --quiet && coverage report --skip-covered --skip-empty
PYTEST = pytest
ERASE =
ENFORCED =
unexport PYTHONPATH COVERAGE_RCFILE
ifneq ($(filter-out false 0,$(CI)),)
unexport PYTEST_ADDOPTS
test test-all: PYTEST = $(MEASURED)
test test-all: ERASE = $(EMPTY)
test test-all: ENFORCED = $(REPORT)
test test-all: test-deps
endif

test: check ## check formatting, lint and types; run unit and integration tests, about ten minutes
	$(TESTS) -m 'not exhaustive' $(ENFORCED)

test-all: check ## run every test: sweeps, fault injection, a fresh install, each Python here; up to 90 minutes
	$(TESTS) $(ENFORCED)

check: setup ## check formatting, lint and types
	@source include/activate && ruff format --check . && ruff check . && mypy

unit: setup ## run the unit tests, two minutes: no training, no Airflow process, no network
	$(TESTS) -m '$(UNIT)'

test-deps: ## install what the tests use and Debian has: Postgres, Redis, Chromium, tools; as root
	@include/test-deps

coverage: PYTEST = $(MEASURED)
coverage: ERASE = $(EMPTY)
coverage: setup ## run the tests of `make test` and report their branch coverage; fails below 97.5 %
	$(TESTS) -m 'not exhaustive' $(REPORT)

mutants: setup ## run mutation testing on the modules that decide about promotion, six minutes
	@source include/activate && exec python -m tests.support.contain python -m tests.support.mutants

shell: setup ## open a shell in which airflow, fmnist and pytest are set up for this project
	@bash --init-file include/activate -i

screenshots: setup ## recreate the screenshots of the UI in docs/images, half an hour
	@source include/activate && FMNIST_SCREENSHOTS=docs/images exec python -m tests.support.contain pytest tests/page/test_browser.py

bench: setup ## measure time and memory of the pipeline: make bench RUNS=3 PROFILE=standard
	@source include/activate && python -m bench.pipeline --runs $(RUNS) --profile $(PROFILE)

bench-training: setup ## compare our training profiles with a usual recipe, hours; make bench-training QUICK=1: minutes
	@source include/activate && python -m bench.training --runs $(SEEDS) --recipes '$(RECIPES)' --out $(OUT)

bench-cluster: setup ## measure Airflow's overhead, candidates over workers, a million images; an hour, as root
	@source include/activate && python -m bench.cluster

lock: ## resolve pyproject.toml into requirements.txt again
	@source include/activate && uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --group dev --custom-compile-command 'make lock' pyproject.toml -o requirements.txt

audit-deps: setup ## check the lock and MinIO for known vulnerabilities, and ends of support; needs Go
	@source include/activate && python -m deploy.supply_chain.audit

sbom: setup ## write bills of materials of the lock, and of MinIO if it was built here, into var/sbom
	@source include/activate && python -m deploy.supply_chain.sbom

pin-images: setup ## write the digests of the base images, as their registries have them now; needs Go
	@source include/activate && python -m deploy.supply_chain.images

clean: ## remove the environment and everything that runs left behind, releases included
	rm -rf .venv var
