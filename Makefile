# Needs Python 3.11 or newer. Everything is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
PROMPT ?= a photo of a cat below a cup
SEED ?= 20
CODE := src tests benchmarks scripts paper examples
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -n 2 --dist worksteal

.PHONY: install demo lint types docs test test-slow wheel

install: .venv/.installed

.venv/.installed: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: install
	$(BIN)/secondlook draw "$(PROMPT)" --seed $(SEED)

lint: install
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: install
	$(BIN)/mypy

# The site, in out/site.
docs: install
	if [ -f mkdocs.yml ]; then $(BIN)/mkdocs build --strict --quiet; fi

test: install
	$(MAKE) --no-print-directory -j 2 lint types docs
	$(PYTEST)

# What is heavy by nature: several ranks, kills, whole scripts.
test-slow: install
	$(PYTEST) -m slow

wheel: install
	$(BIN)/pip wheel --no-deps --wheel-dir dist .
