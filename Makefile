# Each target makes what it needs: `make demo` and `make test` both start from nothing but Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
ROOT ?= runs/demo
RECIPE ?= demo
SEEDS ?= 5

.PHONY: install demo suite-table2 suite-table4 suite-controls suite-smoke test check clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo,test]'
	touch $@

demo: install ## the whole pipeline on real pairs, here: minutes on two cores
	$(BIN)/python pipelines/submit.py --recipe demo --local --root $(ROOT)

# The rows of one table with several seeds, here, one stage after another; a stopped suite goes on where it was.
# `make suite-table4 SEEDS=2`, `make suite-smoke RECIPE=tiny SEEDS=2`
suite-table2 suite-table4 suite-controls suite-smoke: suite-%: install ## baselines, ablations, controls, two rows
	$(BIN)/python pipelines/submit.py --suite $* --recipe $(RECIPE) --seeds $(SEEDS) --local --root $(ROOT)

test: install ## the tests
	$(BIN)/python -m pytest

check: install ## what CI runs: format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

clean: ## runs, but not the environment
	rm -rf runs
