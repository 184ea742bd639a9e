# `make` lists the targets. PYTHON=... names the interpreter of .venv, ARGS=... is passed on.

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
BIN := .venv/bin
ARGS ?=

export PYTHON

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Run the whole journey with real processes (ARGS=--keep leaves it running)
	@.ci/bootstrap system mosquitto
	@.ci/bootstrap venv
	@$(BIN)/skerry demo $(ARGS)

.PHONY: test
test: ## Install what the checks need, then lint and test (ARGS="-k name" selects tests)
	@.ci/bootstrap system mosquitto strace qemu-aarch64-static chromium systemd-analyze
	@$(MAKE) lint
	@.ci/bootstrap models
	@.ci/bootstrap env .ci/envs/tflite-legacy.lock
	@echo "==> pytest"
	@$(BIN)/pytest $(ARGS)

.PHONY: bench-packager
bench-packager: venv ## Measure the packager beside its peers (hours; ARGS=--quick for six models)
	@.ci/bootstrap system espeak-ng
	@.ci/bootstrap models
	@.ci/bootstrap models benchmarks/packager/models.lock .envs/bench-models
	@.ci/bootstrap env benchmarks/packager/envs/*.lock
	@$(BIN)/python -m benchmarks.packager $(ARGS)

.PHONY: lint
lint: venv ## Check style, types and import rules
	@echo "==> ruff"
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@echo "==> mypy"
	@$(BIN)/mypy --no-error-summary
	@echo "==> import rules"
	@$(BIN)/lint-imports --no-logo

.PHONY: format
format: venv ## Sort imports and format the code
	@$(BIN)/ruff check --fix --quiet
	@$(BIN)/ruff format --quiet

.PHONY: venv
venv: ## Make .venv from requirements.lock, if it is not up to date
	@.ci/bootstrap venv

.PHONY: lock
lock: venv ## Resolve the dependencies anew and write requirements.lock
	@.ci/lock

.PHONY: clean
clean: ## Remove the environments, models, builds and the caches of the tools
	@rm -rf .venv .envs .models build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
