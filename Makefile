# Everything a contributor runs. `make setup` is quick when nothing changed, so each target simply asks for it.
.DEFAULT_GOAL := help
.PHONY: help setup demo serve test lint docs lock clean

VENV := .venv/bin
ARGS ?=
PYTEST_ARGS ?=

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv and fetch the demo's model files (PYTHON=... chooses the interpreter)
	@scripts/setup.sh

demo: setup ## serve every kind of model in a real Triton and ask each a question
	@$(VENV)/python scripts/demo.py $(ARGS)

serve: setup ## serve model_repository (ARGS="--http-port 9000")
	@$(VENV)/triton-unified serve model_repository $(ARGS)

test: lint ## lint, then unit and server tests, once for each state of the tree (PYTEST_ARGS="-k name", FORCE=1)
	@scripts/test.sh $(PYTEST_ARGS)

lint: setup ## ruff, mypy, shellcheck and hadolint
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy
	@$(VENV)/shellcheck scripts/*.sh .ci/run
	@$(VENV)/hadolint Dockerfile

docs: setup ## the documentation as a site in build/site, which needs no server and no network
	@NO_MKDOCS_2_WARNING=1 $(VENV)/mkdocs build --quiet --strict
	@echo "docs: build/site/index.html"

lock: ## resolve the dependencies again (ARGS=--upgrade for newer versions)
	@scripts/lock.sh $(ARGS)

clean: ## remove .venv and everything that was built; the shared cache stays
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find backend scripts tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
