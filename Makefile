# `make run` trains and promotes on the real dataset, `make test` checks everything; both set up what they need.
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

.PHONY: help setup run ui minio run-minio secrets cluster run-cluster cluster-down test test-all check unit test-deps coverage mutants shell screenshots bench bench-training bench-cluster lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## environment, dataset and Airflow database, unless they are there
	@include/setup

run: setup ## the whole DAG on the real images: make run PROFILE=quick SEED=1 FORCE=true
	@source include/activate && include/run '$(PARAMETERS)'

ui: setup ## Airflow with its UI on this machine, until Ctrl-C; prints address, user and password: make ui PORT=8080
	@include/ui

minio: setup ## a MinIO server for development, until Ctrl-C; prints address, user and password
	@include/minio develop

run-minio: setup ## the same DAG with MinIO as its store: the one in FMNIST_STORE, or the one for development
	@include/minio run '$(PARAMETERS)'

secrets: ## fill in the secrets of .env, for docker-compose.yaml
	@include/cluster/secrets

cluster: setup ## Postgres, Redis, MinIO and Airflow with Celery as processes here: make cluster WORKERS=2 PORT=8080
	@source include/activate && python -m tests.support.cluster up --workers $(WORKERS) --port $${PORT:-8080}

run-cluster: setup ## the same DAG on the cluster that runs
	@source include/activate && python -m tests.support.cluster run '$(PARAMETERS)'

cluster-down: setup ## stop the cluster; what it stored stays
	@source include/activate && python -m tests.support.cluster down

# The tests of a file share a worker; a third one has work for the cores while the others wait for services.
PYTEST = exec python -m tests.support.contain coverage run -m pytest
GROUPS = --dist loadscope --no-loadscope-reorder
PARALLEL = --numprocesses 3 $(GROUPS)
UNIT = not integration and not exhaustive

test: check $(if $(filter true,$(CI)),test-deps) ## formatting, lint, types and the tests of every change, ten minutes
	@rm -f var/coverage/data* && mkdir -p var/coverage
	@source include/activate && $(PYTEST) $(PARALLEL) -m 'not exhaustive'
	@$(MAKE) --no-print-directory coverage

test-all: check $(if $(filter true,$(CI)),test-deps) ## everything: sweeps, fault injection, a fresh install, every Python here
	@rm -f var/coverage/data* && mkdir -p var/coverage
	@source include/activate && $(PYTEST) $(PARALLEL)
	@$(MAKE) --no-print-directory coverage

check: setup ## formatting, lint and types
	@source include/activate && ruff format --check . && ruff check . && mypy

unit: setup ## the unit tests: no training, no Airflow process, no network
	@source include/activate && exec python -m tests.support.contain pytest --numprocesses 2 $(GROUPS) -m '$(UNIT)'

test-deps: ## what the tests use and Debian has: Postgres, Redis, Chromium; as root
	@include/test-deps

coverage: ## what the last tests covered, branches included, and whether it is enough
	@source include/activate && coverage combine --quiet --keep && coverage report --skip-covered --skip-empty

mutants: setup ## how many changes of the deciding modules the unit tests notice
	@source include/activate && exec python -m tests.support.contain python -m tests.support.mutants

shell: setup ## a shell in which airflow and fmnist know this project
	@bash --init-file include/activate -i

screenshots: setup ## docs/images from a journey through the UI over the real images, half an hour
	@source include/activate && FMNIST_SCREENSHOTS=docs/images exec python -m tests.support.contain pytest tests/page/test_browser.py

bench: setup ## time and memory of the line: make bench RUNS=3 PROFILE=standard
	@source include/activate && python -m bench.pipeline --runs $(RUNS) --profile $(PROFILE)

bench-training: setup ## our recipes against the usual one, hours; make bench-training QUICK=1 takes minutes
	@source include/activate && python -m bench.training --runs $(SEEDS) --recipes '$(RECIPES)' --out $(OUT)

bench-cluster: setup ## Airflow's share, candidates over workers, a million images, two million to train on; an hour, as root
	@source include/activate && python -m bench.cluster

lock: ## resolve pyproject.toml into requirements.txt again
	@source include/activate && uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --group dev --custom-compile-command 'make lock' pyproject.toml -o requirements.txt

clean: ## remove the environment and everything that runs left behind, releases included
	rm -rf .venv var
