# Needs python3 (3.11 or newer) and make; everything else goes into .venv on first use.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: reproduce test faults audit lab clean

reproduce: .venv/ready      ## every figure and table of the micro profile
	$(BIN)/liftlab run --profile micro

test: .venv/ready           ## formatting, lint and the whole test suite
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m pytest -n auto

faults: .venv/ready         ## kill a micro run 50 times, resume it, compare its records
	$(BIN)/python tests/faults/kills.py --kills 50 --out figures/micro/faults.csv

audit: .venv/audit/bin/pip-audit  ## known vulnerabilities of the locked versions; asks PyPI
	.venv/audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip --strict

lab: .venv/lab              ## JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

.venv/ready: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "liftlab needs Python 3.11 or newer, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[test]'
	touch $@

.venv/lab: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[lab]'
	touch $@

.venv/audit/bin/pip-audit:
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit

clean:
	rm -rf .venv
