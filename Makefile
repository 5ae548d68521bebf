# Bare `make` prints the targets. Everything is installed into .venv; nothing outside the checkout is touched,
# except that `make test` installs Debian's nginx and friends where it may (root on Debian) and skips their tests where not.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# One file runs on one worker, so that its fixtures are made once; tests/conftest.py begins with the longest files.
WORKERS  ?= 3
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# CI tries a failed test once more, and the summary lists it. Anywhere else a failed test fails.
RERUNS   := $(if $(CI),--reruns 1)
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.PHONY: help run test test-fast test-image check fix bench docs lock setup setup-dev debian

help: ## print the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

run: setup ## set up, then serve the embedded model, or MODEL (PORT, HOST, CHATSVC_HOME)
	@exec $(BIN)/chatsvc quickstart $(if $(MODEL),--model "$(MODEL)")

test: setup-dev debian check ## check, then run every test, WORKERS files at a time, with branch coverage
	@echo "==> running the tests"
	@$(BIN)/python -m pytest $(PARALLEL) $(RERUNS) --cov --cov-report=term:skip-covered

test-fast: setup-dev ## run the tests that start no engine and no browser, without coverage
	@$(BIN)/python -m pytest --fast -n 4 --dist loadfile $(RERUNS)

test-image: setup-dev ## build the container image with Debian's buildah, start it and chat (root, several minutes)
	@$(BIN)/python -m pytest -m image tests/system/test_image.py

check: setup-dev ## lint, types and the import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

fix: setup-dev ## let ruff fix and format what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup-dev ## measure this machine: throughput and time to the first token
	@$(BIN)/python -m bench.everything

docs: setup-dev ## write the pages that are made from the code
	@$(BIN)/python tools/pages.py

lock: setup-dev ## write the hashes of what the image installs, after a change of versions
	@$(PIP) install --quiet uv==0.13.9
	@$(BIN)/python tools/lock.py

setup: $(VENV)/.base ## install what serving needs (no torch)

setup-dev: $(VENV)/.dev ## install what testing, conversion and benchmarks need as well

debian:
	@.ci/debian

$(VENV)/.base: pyproject.toml constraints.txt hatch_build.py $(wildcard $(addprefix src/chatsvc/engine/runners/native/csrc/,*.[ch] */*.[ch]))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "chatsvc needs Python 3.11 or newer: name it, as in 'make run PYTHON=python3.11'" >&2; exit 3; }
	@echo "==> installing chatsvc into $(VENV) (about 700 MB, once)"
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --progress-bar on -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "==> installing the reference runner, conversion and test tools"
	@$(PIP) install --progress-bar on -c constraints.txt -e '.[torch,postgres,redis,directory,kit,dev]'
	@$(PIP) install --no-deps optimum-intel==2.2.0
	@touch $@
