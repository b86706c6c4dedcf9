# LatentEvolve. `make serve` and `make test` need Python 3.11 or 3.12, make and git, and set up the rest.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
ARGS   ?=

# As many processes as there are cores; more than four would start more engines than a laptop holds.
PYTEST  = $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

.PHONY: help setup setup-dev serve demo test check lint format lock clean

help:
	@echo "make serve   set up and start gateway and worker on 127.0.0.1:8000 (ARGS='--model ...')"
	@echo "make demo    a day, a night and the next day on example questions"
	@echo "make test    set up and run every test"
	@echo "make check   format, lint, types and the quick tests: those without vLLM and long processes"
	@echo "make lint    format, lint and types"
	@echo "make lock    resolve the pinned requirements in locks/ anew (needs uv)"
	@echo "make clean   remove the environment and caches; never the data folder"

setup:
	@$(SHELL) scripts/setup.sh "$(PYTHON)" "$(VENV)" cpu

setup-dev:
	@$(SHELL) scripts/setup.sh "$(PYTHON)" "$(VENV)" cpu dev

serve: setup
	@exec $(BIN)/latentevolve serve $(ARGS)

demo: setup
	@exec $(BIN)/latentevolve demo $(ARGS)

test: setup-dev
	@$(BIN)/latentevolve pull
	$(PYTEST) $(ARGS)

check: lint
	@$(BIN)/latentevolve pull
	$(PYTEST) -m "not vllm and not slow" $(ARGS)

lint: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock:
	@$(SHELL) scripts/lock.sh

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache
