.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
UV_VERSION := 0.13.9
UV := $(BIN)/uv --quiet --system-certs

# Compiled modules are worth keeping: without them every process compiles all it imports again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-lowest test-matrix slow docs format lock clean

help: ## what each target does
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /: /'

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV) pip install --python $(BIN)/python --no-deps --require-hashes --requirements requirements.lock
	$(UV) pip install --python $(BIN)/python --no-deps --editable .
	touch $@

demo: .venv/ready ## compare a fine-tuned SmolLM2-135M with its base on the held-out prompts of examples/guess_number
	$(BIN)/heldout evaluate --model tuned=smollm2-135m+examples/guess_number/adapter/adapter.gguf --compare-with base=smollm2-135m --agent examples/guess_number/agent.py:play --dataset examples/guess_number/held-out.jsonl --limit 24 --output runs -H eval_group_size=4 -H sampling_temperature=0.7 -H max_tokens=12 -H rollout_max_concurrency=8

test: .venv/ready ## format, lint, strict types, docs, tests
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

test-lowest: .venv/ready ## the tests with the lowest versions that pyproject.toml allows
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/lowest

test-matrix: .venv/ready ## the tests on each Python from 3.11 to 3.14 on this machine
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/matrix

slow: .venv/ready ## the tests marked slow
	$(BIN)/pytest -m slow

docs: .venv/ready ## the site of the docs, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: .venv/ready ## rewrite the source in the project's format
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lock: .venv/ready ## resolve requirements.lock again from pyproject.toml
	$(UV) pip compile pyproject.toml --all-extras --group dev --universal --generate-hashes --upgrade --custom-compile-command "make lock" --output-file requirements.lock

clean: ## remove the environment and every cache
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
