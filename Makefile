# Bare `make` prints the targets. Everything is installed into .venv; nothing outside the checkout is touched,
# except that `make test` installs Debian's nginx and friends where it may (root on Debian) and skips their tests where not.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help run test check fix bench docs setup setup-dev clean

help: ## print the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

run: setup ## set up, then serve with the embedded model (PORT, HOST, CHATSVC_HOME)
	@exec $(BIN)/chatsvc quickstart

setup: $(VENV)/.base ## install what serving needs (no torch)

setup-dev: $(VENV)/.dev ## install what testing, conversion and benchmarks need as well

$(VENV)/.base: pyproject.toml constraints.txt
	@echo "==> installing chatsvc into $(VENV) (about 700 MB, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --progress-bar on -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@echo "==> installing the reference runner, conversion and test tools"
	@$(PIP) install --progress-bar on -c constraints.txt -e '.[torch,postgres,redis,dev]'
	@$(PIP) install --no-deps optimum-intel==2.2.0
	@touch $@
