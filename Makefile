# Needs python3 (3.11 or newer) and make; everything else goes into .venv on first use.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: reproduce test gpu faults audit lab clean

reproduce: .venv/ready      ## every figure and table of the micro profile
	$(BIN)/liftlab run --profile micro

test: .venv/ready           ## formatting, lint and the whole test suite
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m pytest -n auto

gpu: .venv/ready            ## on a machine with a GPU: real models' figures, Llama-3-8B's times, 32 documents at once
	$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "make gpu: torch sees no GPU here")'
	failed=0; export LIFTLAB_AT_ONCE=$${LIFTLAB_AT_ONCE:-32}; \
	$(BIN)/liftlab run --profile smollm2 || failed=1; \
	$(BIN)/liftlab run efficiency --profile llama3_timing --set repeats=1 \
	  && $(BIN)/liftlab run efficiency --profile llama3_timing || failed=1; \
	$(BIN)/liftlab bench --base smollm2 --profile smollm2_timed --name bench_32 --documents 32 --at-once 1,32 \
	  --tokens 1000 --pairs 24 --set mixed_epochs=2 --reference-documents 4 --memory 32 || failed=1; \
	exit $$failed

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
