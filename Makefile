# make quickstart | make test: everything a fresh machine needs (Python 3.11+ and make)
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 2

.PHONY: help quickstart test lint format smollm2 embedded clean

help:
	@echo "make quickstart   set up .venv, then GRPO on the embedded model: AdamW against SGD, 3 seeds"
	@echo "make test         set up .venv, then lint, types and tests"
	@echo "make lint | format"
	@echo "make smollm2      prepare SmolLM2-135M-Instruct in the cache"
	@echo "make embedded     recreate the embedded model from nothing"

.venv/main: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("rlsgd needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/dev: .venv/main
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps verl
	@touch $@

quickstart: .venv/main
	$(BIN)/rlsgd study configs/studies/quickstart.yaml

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

smollm2: .venv/dev
	$(BIN)/python tools/prepare_smollm2.py

embedded: .venv/main
	$(BIN)/python tools/make_embedded_model.py

clean:
	rm -rf .venv runs
