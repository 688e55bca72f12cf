# The only commands a newcomer needs. `make` lists them.

# The first Python that runs and is new enough; `make PYTHON=...` chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
DISTRIBUTIONS := shared/pyproject.toml $(wildcard services/*/pyproject.toml)

# Checks run side by side, and while the servers are fetched.
MAKEFLAGS += --jobs=3

.DEFAULT_GOAL := help
.PHONY: help install demo test lint style mypy pyright format schemas servers bench-streaming bench-torch-engine bench-fingerprint bench-uneven

help: ## Show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

install: .venv/installed ## Make .venv, or renew it when it is stale

.venv/installed: pyproject.toml constraints.txt scripts/install.py $(DISTRIBUTIONS)
	@test -n "$(PYTHON)" || { echo 'MaverIQ needs Python 3.11 or newer on the PATH' >&2; exit 1; }
	$(PYTHON) scripts/install.py

demo: install ## From an intent to streamed tokens, on this machine
	$(BIN)/maveriq demo

lint: style mypy pyright ## ruff, import-linter, mypy, pyright

style: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

mypy pyright: install
	$(BIN)/$@

# Two at a time, each with servers of its own; one where servers are given, which two would share.
TEST_PROCESSES := $(if $(MAVERIQ_TEST_AMQP_URL)$(MAVERIQ_TEST_REDIS_URL),0,2)

test: lint servers ## Lint and every test, against private RabbitMQ and Redis
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile

servers: install
	@scripts/servers.sh

format: install ## Let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schemas: install ## Write shared/asyncapi.json and shared/schemas/ anew
	$(BIN)/python -m maveriq.asyncapi shared

bench-streaming: servers ## Tokens/s, CPU and latency against plain SSE
	$(BIN)/python benchmarks/streaming.py

bench-fingerprint: install ## Calibrated on synthetic models, held to whole ones, on this CPU
	$(BIN)/python benchmarks/fingerprint_cpu.py

bench-uneven: install ## What uneven stages cost, and whether their memory is as planned
	$(BIN)/python benchmarks/uneven.py

bench-torch-engine: install ## The torch engine against transformers' generate
	$(BIN)/python benchmarks/torch_engine.py
