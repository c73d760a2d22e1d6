# `make demo` and `make test` need python3 (3.11 or newer) and nothing else: they make .venv themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help venv demo test test-all test-buckets test-harness test-cluster test-tpu lint lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t12

venv: $(BIN)/.done  ## the pinned environment, in .venv

$(BIN)/.done: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bigmodel needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...")'
	@echo "installing into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: venv  ## real text -> 18 runs -> scaling law with figures, in minutes
	@$(BIN)/bigmodel prepare news --out=data/news-bytes
	@$(BIN)/bigmodel sweep run sweeps/demo.py
	@$(BIN)/bigmodel report sweeps/demo.py

lint: venv  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: lint  ## lint, types and the default tests
	@$(BIN)/python -m pytest -n 2 --dist=worksteal

$(BIN)/.reference: $(BIN)/.done
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[reference]'
	@touch $@

test-all: lint $(BIN)/.reference  ## everything: minutes of kills, downloads, other implementations (torch)
	@$(BIN)/python -m pytest -n 2 --dist=worksteal -m 'not bucket and not cluster and not tpu'

test-harness:  ## lm-evaluation-harness's own scores, in an environment of its own
	@$(PYTHON) -m venv build/harness
	@build/harness/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev,harness]'
	@build/harness/bin/python -m pytest -m reference tests/test_evaluate.py

$(BIN)/.emulators: $(BIN)/.done
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[emulators]'
	@touch $@

test-buckets: $(BIN)/.emulators  ## gs:// and s3:// on emulators: races, kills, lost connections, a sweep of 1,000 rows
	@$(BIN)/python -m pytest -m bucket -s tests/test_buckets.py

test-cluster: venv  ## a real Slurm of two nodes on this host (root; Debian's slurm-wlm and munge)
	@$(BIN)/python -m pytest -m cluster -s tests/test_cluster.py

$(BIN)/.tpu: $(BIN)/.done
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[tpu]'
	@touch $@

test-tpu: $(BIN)/.tpu  ## programs compiled for TPUs, by libtpu
	@$(BIN)/python -m pytest -m tpu tests/test_pod.py

lock:  ## pin what a fresh environment of this Python resolves to
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip install --quiet '.[dev]' setuptools
	@build/lock/bin/python -m pip freeze --exclude bigmodel --all | grep -v '^pip=='

clean:  ## the environment and caches; never data/ or runs/
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache *.egg-info
