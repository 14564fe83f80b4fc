# Each target makes the virtual environment it needs; the only thing fetched is packages from the index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: docs linkcheck release-check demo test slow fuzz lint types check bench sweep clean

demo: $(VENV)/.installed
	@$(BIN)/vizrobust neurons --out runs/demo

# Two workers, one thread each; the tests of one module stay on one worker, which makes their shared fixtures once.
test: $(VENV)/.test
	$(BIN)/python -m pytest -q -n 2 --dist loadscope $(PYTEST)

slow: $(VENV)/.test
	$(BIN)/python -m pytest -q -n 2 --dist loadscope -m slow $(PYTEST)

# Damaged and invented input, seeded; ends within two minutes.
fuzz: $(VENV)/.test
	VIZROBUST_FUZZ=1000 timeout 300 $(BIN)/python -m pytest -q -n 2 tests/fuzz

# The documentation as a site, docs/_build/html/index.html; a warning is an error.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

# Every address in the documentation is asked for; where there is no network, that is said.
linkcheck: $(VENV)/.docs
	@if $(BIN)/python -c 'import socket; socket.create_connection(("docs.python.org", 443), 5)' 2>/dev/null; \
	then VIZROBUST_DOCS_ONLINE=1 $(BIN)/python -m sphinx -q -b linkcheck -D nb_execution_mode=off docs docs/_build/links; \
	else echo "no network: addresses are not checked"; fi

# Both distributions, checked strictly; the wheel in a clean environment. DEPENDENCIES=shared borrows those of $(VENV).
release-check: $(VENV)/.docs
	$(BIN)/python -m pip install --quiet build twine
	.ci/release-check $(BIN)/python $(DEPENDENCIES)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

check: lint types test

bench: $(VENV)/.peers
	$(BIN)/python -m tests.benchmarks

# Trains the built-in MNIST sweep again (about five minutes on two idle cores) and makes its gallery.
sweep: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" bash gallery/mnist-sweep/make.sh

clean:
	rm -rf $(VENV) runs docs/_build .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet -e '.[judges]'
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[judges,test]'
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[judges,docs]'
	@touch $@

$(VENV)/.peers: $(VENV)/.test tests/peers.txt
	$(BIN)/python -m pip install --quiet --no-deps -r tests/peers.txt
	@touch $@
