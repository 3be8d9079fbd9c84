# Each target makes what it needs: `make demo` and `make test` both start from nothing but Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
ROOT ?= runs/demo
RECIPE ?= demo
SEEDS ?= 5
PARALLEL ?= 1
SET ?=
RUN ?=
DATA ?=
REGISTRY ?=
TARGET ?= cuda
PIP_INDEX_URL ?=
TORCH_INDEX ?=
APT_PACKAGES ?=
BASE_IMAGE ?= python:3.11-slim-bookworm
DOCKER ?= docker
BUILD_FLAGS ?=

.PHONY: bench docs gpu faults install install-demo acceptance demo test test-fast test-heavy check types lock images clean

# What is installed, a stamp each: the demo waits for nothing that the tests alone need. Done once, each is done at once.
OF_DEMO := $(VENV)/.installed-demo
OF_TESTS := $(VENV)/.installed-tests
PIP = $(BIN)/python -m pip install --disable-pip-version-check

install: $(OF_TESTS) ## all that the tests need

install-demo: $(OF_DEMO) ## what the demo and runs of your own need; TORCH_INDEX=URL of PyTorch's CPU wheels: without CUDA

$(BIN)/python:
	@echo "setup: makes $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

# torch and torchvision from an index of their own, both of them. Without TORCH_INDEX those that are there stay.
ifneq ($(TORCH_INDEX),)
TORCH_STAMP := $(VENV)/.torch-of-$(subst /,_,$(subst :,_,$(TORCH_INDEX)))
$(TORCH_STAMP): | $(BIN)/python
	@echo "setup: torch and torchvision from $(TORCH_INDEX)"
	@$(BIN)/python -m pip uninstall --quiet --yes torch torchvision
	$(PIP) --no-deps --index-url '$(TORCH_INDEX)' $$(sed -n 's/^ *"\(torch\(vision\)\{0,1\}>=[^"]*\)",/\1/p' pyproject.toml)
	@rm -f $(VENV)/.torch-of-*
	@touch $@
endif

$(OF_DEMO): pyproject.toml $(TORCH_STAMP) | $(BIN)/python
	@echo "setup: installs what the demo needs into $(VENV): 180 packages, 6.7 GB on disk, of which CUDA has 4.3 GB;"
	@echo "       minutes on a fast line. pip shows each download. A stopped setup goes on: the same command again."
	@$(if $(TORCH_INDEX),,echo "       No GPU? make $(MAKECMDGOALS) TORCH_INDEX=URL, of PyTorch's CPU wheels by its installation page, has no CUDA.")
	$(PIP) -e '.[demo]'
	@$(BIN)/python -c "$$SAME_BUILD"
	@touch $@
	@echo "setup: done. $(BIN)/cmapkd is the command"

$(OF_TESTS): $(OF_DEMO)
	@echo "setup: installs what the tests need beside it: 55 packages, 0.3 GB on disk"
	$(PIP) -e '.[demo,test]'
	@touch $@

# A build of torch with another one of torchvision fails where it is imported, with a message that names neither.
define SAME_BUILD
import importlib.metadata, sys
torch, vision = (importlib.metadata.version(name) for name in ("torch", "torchvision"))
if torch.partition("+")[2] != vision.partition("+")[2]:
    sys.exit(f"torch {torch} and torchvision {vision} are of two indexes: "
             "make install-demo TORCH_INDEX=URL takes both from one; or remove $(VENV) and begin anew")
endef
export SAME_BUILD

demo: install-demo ## the whole pipeline on real pairs, here: minutes on two cores
	@echo "demo: 1,864 pictures, 14 stages, minutes on two cores; Ctrl-C stops it, and the same command goes on"
	$(BIN)/python pipelines/submit.py --recipe demo --local --root $(ROOT)

# The rows of one table with several seeds, here, PARALLEL stages at a time; a stopped suite goes on where it was.
# `make suite-smoke RECIPE=tiny SEEDS=2 PARALLEL=2`, `make suite-core SET='data.fraction=0.1 optim.batch=32' RUN=a-tenth`
suite-%: install-demo ## a suite of docs/howto/suites.md: baselines, ablations, controls, two rows
	$(BIN)/python pipelines/submit.py --suite $* --recipe $(RECIPE) --seeds $(SEEDS) --local --parallel $(PARALLEL) --root $(ROOT) $(addprefix --set ,$(SET)) $(addprefix --run ,$(RUN)) $(addprefix --data ,$(DATA))

# A file's tests stay in one process, which has one thread (tests/conftest.py); `python -m pytest FILE` runs in this one.
# Files in their order: the whole run of tests/acceptance, one of few tests and minutes, begins first and not last.
# One process more than there are cores, up to four: tests wait for servers, signals and processes of theirs.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 4 ? n + 1 : 4)))
TESTS = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test: install ## the tests but for the heavy ones
	$(TESTS)

test-heavy: install ## whole runs, faults, formats that others read: in processes of their own; CI has them beside the others
	$(TESTS) -m heavy

test-fast: install ## a minute's worth of them, for the inner loop; tests/conftest.py says which
	$(TESTS) --fast

check: install ## what CI runs: format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(MAKE) --jobs 2 types test

types: install ## mypy: one core for a minute or more, so `check` has it beside the tests
	$(BIN)/mypy

# One process, since the table comes last and some faults are about time. `make faults FAULTS='tests/faults/test_s3.py
# --fault-seed 1'`: one kind, other moments.
FAULTS ?= tests/faults
faults: install ## kills, lost ranks, damage, races and what S3 and MLflow do, as often as docs/reliability.md says
	$(BIN)/python -m pytest -m heavy --faults all $(FAULTS)

# Needs Docker, PostgreSQL and Ceph (tests/acceptance/ceph.sh names its packages); CMAPKD_IMAGE=... takes another image
# than the last one built, and AWS_ENDPOINT_URL, the AWS keys and MLFLOW_TRACKING_URI together your own S3 and MLflow.
acceptance: install ## the demo in containers of the built image, on a real S3 and on MLflow with PostgreSQL
	$(BIN)/python -m pytest -m acceptance -s tests/acceptance

# On quiet cores: each prints ours beside a peer's of the same run, after a check that both do the same. `make bench BENCH=pairs`
BENCH ?= step pyramid small_maps achieved pairs memory loader prepare partitions retrieval scale throttled saving stored filling
bench: install ## what a step, a loader, a stage cost beside their peers; a quarter of an hour
	set -e; for name in $(BENCH); do echo "== benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py; done

# On a machine with a GPU; without one the same code runs at tiny sizes, in two minutes, and the table says so.
GPU_TABLE ?= runs/gpu.json
gpu: install ## is training right and fast on this GPU: one table, in ten minutes, offline
	$(BIN)/python benchmarks/gpu.py --out $(GPU_TABLE)

# Needs mkdocs-material alone, so that nobody waits for torch to read a page; pyproject.toml has its version.
$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$($(BIN)/python docs/tools/requirements.py)
	touch $@

docs: $(VENV)/.docs ## these pages as a site, in site/; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lock: install ## the image's dependencies, with hashes, at the versions that the tests ran with
	BIN=$(BIN) docker/lock.sh

# `make images REGISTRY=registry.example.org/team` builds and pushes, and prints the line for site.toml; without
# REGISTRY the image stays here. `TARGET=cpu TORCH_INDEX=URL` has no CUDA; BASE_IMAGE is a Debian with Python 3.11 and
# pip, PIP_INDEX_URL your mirror of the package index, APT_PACKAGES=default-jre-headless adds METEOR's Java.
images: ## the container image of all stages
	REGISTRY='$(REGISTRY)' TARGET='$(TARGET)' BASE_IMAGE='$(BASE_IMAGE)' DOCKER='$(DOCKER)' \
	PIP_INDEX_URL='$(PIP_INDEX_URL)' TORCH_INDEX='$(TORCH_INDEX)' APT_PACKAGES='$(APT_PACKAGES)' docker/build.sh $(BUILD_FLAGS)

clean: ## runs, but not the environment
	rm -rf runs
