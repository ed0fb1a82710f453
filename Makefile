# Needs Python 3.11 or newer. Everything is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
PROMPT ?= a photo of a cat below a cup
SEED ?= 20

.PHONY: install demo test

install: .venv/.installed

.venv/.installed: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: install
	$(BIN)/secondlook draw "$(PROMPT)" --seed $(SEED) --out out/demo

test: install
	$(BIN)/ruff check src tests benchmarks runs paper
	$(BIN)/ruff format --check src tests benchmarks runs paper
	$(BIN)/mypy
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -n 2 --dist worksteal
