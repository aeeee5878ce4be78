# Each target sets itself up: Python >= 3.11, make and a network (or a filled uv cache) are all a fresh machine needs.
PYTHON ?= python3
PROFILE ?= smoke
CORES ?= 2

bin := .venv/bin
ready := .venv/.ready

.PHONY: book test bench lint format lock notebooks clean

$(ready): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, found {sys.version.split()[0]}: make PYTHON=python3.12"'
	test -x $(bin)/python || $(PYTHON) -m venv .venv
	$(bin)/python -m pip install --quiet "uv>=0.5"
	$(bin)/uv pip install --python $(bin)/python --no-deps --require-hashes -r requirements.lock
	$(bin)/uv pip install --python $(bin)/python --no-deps --no-build-isolation -e .
	touch $@

lock:  ## resolve pyproject.toml anew: exact versions and hashes for every platform, no index address
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --upgrade --quiet -o requirements.lock
