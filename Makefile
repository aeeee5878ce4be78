# Each target sets itself up: Python ≥ 3.11, make, a compiler and a network are all a fresh machine needs.
PYTHON ?= python3
PROFILE ?= smoke
DATA ?=
CORES ?= 2

bin := .venv/bin
ready := .venv/.ready

.PHONY: help setup book test test-book test-faults coverage test-cluster test-launch test-versions plan bench lint format sync lock clean
.DEFAULT_GOAL := book

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name what; do \
		printf '%-14s%s\n' "$$name" "$$what"; done

setup: $(ready)  ## only .venv (gigabytes, and a network)

book: $(ready)  ## run what is out of date, then build _build/html (PROFILE=laptop DATA=real CORES=8)
	$(bin)/hpat book --profile $(PROFILE) $(if $(DATA),--data $(DATA)) --cores $(CORES)

test: book lint  ## the book, then every test, the chapters' stored outputs and the pages included
	$(bin)/hpat verify || test $$? -eq 10  # 10: a claim is contradicted, which is a result
	OMP_NUM_THREADS=1 $(bin)/pytest -n $(CORES) --dist loadfile $(cover) tests  # a file on each core; the chapters are those of the book

coverage: cover := --cov --cov-report=term:skip-covered
coverage: test  ## the same, and which lines of the library they reach; fails below the floor in pyproject.toml

test-cluster: $(ready)  ## two chapters on a real Slurm of this machine, trainings killed on their way (as root)
	$(bin)/python tests/cluster.py

test-launch: $(ready)  ## the wheel alone, Colab's first cell, what Binder builds (minutes, and a network)
	$(bin)/python tests/launch.py

oldest := 3.11-lowest-direct
newest := 3.11-highest 3.12-highest 3.13-highest
methods := attacks spatial stbo mixbn glcm training statistics outcomes claims records sharing

test-versions: $(ready) $(addprefix versions-,$(oldest) $(newest))  ## the methods with the oldest and the newest packages, on each Python (gigabytes)

# versions-3.12-highest: that Python, that resolution. torchvision, which timm brings along, would otherwise be the
# newest and bring the newest torch; torchattacks pins an old requests and needs none.
versions-%: export PATH := $(CURDIR)/$(bin):$(PATH)
versions-%: place = _build/$@
versions-%:
	uv venv --quiet --clear --python $(firstword $(subst -, ,$*)) $(place)
	uv pip install --quiet --python $(place) --resolution $(subst $(firstword $(subst -, ,$*))-,,$*) -e '.[fabric]' \
		"torchvision>=0.18" "pytest>=8" "hypothesis>=6.100"
	uv pip freeze --quiet --python $(place) --exclude-editable > $(place)/kept.txt
	uv pip install --quiet --python $(place) -c $(place)/kept.txt botorch requests
	uv pip install --quiet --python $(place) --no-deps torchattacks
	OMP_NUM_THREADS=2 $(place)/bin/python -m pytest -q $(methods:%=tests/test_%.py)

plan: $(ready)  ## count anew what the profile paper costs, for the page on reproducing
	env -u HPAT_DATA HPAT_HOME=_build/nothing-trained $(bin)/hpat book --profile paper --data real --dry-run --json \
		> benchmarks/plan.json

test-book: book  ## every page in a browser: accessible, light, quick to its answer (minutes)
	$(bin)/pytest -n $(CORES) -m book tests

test-faults: $(ready)  ## kills, races, damaged and hostile files: how many ended in a clear sentence
	$(bin)/python tests/faults.py

# What the scripts compare with beside the locked packages, as far as it can be had; whoever is missing is left out.
peers := cma fastrad mahotas numba optuna secml-torch

bench: $(ready)  ## side-by-side timings: run on a machine that does nothing else
	$(bin)/uv pip freeze --quiet --python $(bin)/python --exclude-editable > .venv/kept.txt
	for name in $(peers); do $(bin)/uv pip install --quiet --python $(bin)/python -c .venv/kept.txt $$name; done; true
	for name in agreement attacks forward glcm growth memory stbo training; do \
		test ! -f benchmarks/$$name.py || $(bin)/python benchmarks/$$name.py || exit 1; done
	$(bin)/python benchmarks/_timing.py  # every ratio, misses marked

lint: $(ready)  ## style, format and types
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

format: $(ready)  ## let ruff repair what it can
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

sync: $(ready)  ## renew the committed notebooks from their .md sources and a smoke run
	$(bin)/hpat sync

lock: $(ready)  ## resolve pyproject.toml anew: exact versions and hashes for every platform, no index address
	$(bin)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --upgrade --quiet -o requirements.lock

clean:  ## the built book and the environment; trained models and decoded images stay in runs/
	rm -rf _build .snakemake .venv

$(ready): requirements.lock pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	test -x $(bin)/python || $(PYTHON) -m venv .venv
	$(bin)/python -m pip install --quiet "uv>=0.5"
	$(bin)/uv pip install --quiet --compile-bytecode --python $(bin)/python --no-deps --require-hashes -r requirements.lock
	$(bin)/uv pip install --quiet --python $(bin)/python --no-deps --no-build-isolation -e .
	touch $@
