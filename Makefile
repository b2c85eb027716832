# Two commands: `make quickstart` fine-tunes a small model from nothing, `make test` runs every test.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
OLDEST ?= .venv-oldest
# How many test files run at the same time. Three gigabytes of memory for each are enough.
JOBS ?= 2
# One rank per GPU, two at most; two on the CPU.
RANKS = $(shell $(BIN)/python -c "import torch; print(min(2, torch.cuda.device_count()) or 2)")

.PHONY: quickstart test test-oldest faults lint format docs

quickstart: $(VENV)/installed
	$(BIN)/python scripts/quickstart.py prepare
	$(BIN)/torchrun --standalone --nproc_per_node=$(RANKS) -m sft.fsdp_sft_trainer +experiment=quickstart
	$(BIN)/python scripts/quickstart.py score

# Tests that kill processes at chosen moments, or fill a GPU, have the machine for themselves.
test: $(VENV)/installed
	$(BIN)/python -m pytest --durations 15 --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder \
		-m "not alone" --ignore tests/gpu
	$(BIN)/python -m pytest --durations 15 -m "alone or gpu" tests/fault tests/gpu

# The oldest torch and transformers that are supported, as GPU images have them: the unit tests, those of several ranks,
# and whether every name that is used is in them. The wheel of this torch brings CUDA, 5 GB on the disk; no GPU is needed.
test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest -p no:cacheprovider --durations 15 --numprocesses $(JOBS) --dist loadfile \
		--no-loadscope-reorder tests/unit tests/dist
	$(OLDEST)/bin/pyright --pythonpath $(OLDEST)/bin/python

# Thirty faults of every class, where `make test` injects three, and a table of them: docs/resume.md. An hour. Without
# root, the classes that mount disks or cut networks are skipped.
faults: $(VENV)/installed
	FAULTS=30 $(BIN)/python -m pytest tests/fault

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site of docs/, into build/site. A link or an anchor that leads nowhere is an error.
docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/zensical build --strict

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,lora,bnb]"
	touch $@

$(OLDEST)/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable ".[dev,lora,bnb]"
	touch $@
