# Both commands start from a bare clone: they make the virtual environment, install the pinned packages, and run.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
FILE   ?=

# Waiting threads spin for a moment only: on a busy machine long spinning makes two threads many times slower than one.
export GOMP_SPINCOUNT ?= 10000

.PHONY: demo test lint clean

demo: $(VENV)/installed
	$(BIN)/recon demo $(if $(FILE),"$(FILE)") --out demo --overwrite

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps fastmri
	touch $@

clean:
	rm -rf $(VENV) demo
