# Two commands: `make demo` and `make test`. Both install first, into .venv, and say what they do.
# PYTHON=... picks another interpreter (3.11 or 3.12).

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?=
# What `make demo SEED=11` or `make bench RATE=20000` change.
SEED ?= 7
RATE ?= 50000
DURATION_S ?= 60
EXAMPLES ?= 200
PYTEST_ARGS ?=
DEMO_ARGS ?=
JSON ?=
ONLY ?=

.PHONY: help install demo test lint types contracts unit fuzz format constraints bench faults clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

install: $(STAMP) ## make .venv and install what is needed (about 30 s with a warm cache)

# The stamp holds the folder: an environment moved with its project still points to the old place.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

$(STAMP): pyproject.toml constraints.txt .ci/install
	@PYTHON='$(PYTHON)' VENV='$(VENV)' bash .ci/install
	@echo '$(CURDIR)' > $@

demo: $(STAMP) ## a minute of simulated traffic with attacks in it, live in the terminal
	@$(BIN)/waxwing demo --seed $(SEED) $(DEMO_ARGS)

# Every step runs, so that one call shows every fault; pytest last, so that its last line closes the output.
test: $(STAMP) ## everything .ci/run runs: lint, types, import contracts, tests
	@failed=; for step in lint types contracts unit; do \
		$(MAKE) --no-print-directory $$step || failed="$$failed $$step"; done; \
		if [ -n "$$failed" ]; then echo "make test: failed:$$failed" >&2; exit 1; fi

lint: $(STAMP) ## ruff
	@echo "== ruff"
	@$(BIN)/ruff check --no-cache .

types: $(STAMP) ## mypy, strict, on features, models and dataflows
	@echo "== mypy"
	@$(BIN)/mypy

contracts: $(STAMP) ## import-linter: dataflows > models > features
	@echo "== import-linter"
	@$(BIN)/lint-imports

unit: $(STAMP) ## pytest; PYTEST_ARGS='-k engine' narrows it
	@echo "== pytest"
	@$(BIN)/python $(if $(strip $(PYTEST_ARGS)),-m pytest $(PYTEST_ARGS),.ci/tests)

# The seed stands in the head of the output. No time limit: a thousand examples take minutes.
fuzz: $(STAMP) ## the property suite with another seed and EXAMPLES of each; SEED=N for the same again
	@$(BIN)/python -m pytest tests/unit/test_properties.py tests/unit/test_late.py tests/unit/test_spans.py \
		--seed $(if $(filter file,$(origin SEED)),$$(date +%s),$(SEED)) --examples $(EXAMPLES) --timeout 0 \
		$(PYTEST_ARGS)

format: $(STAMP) ## let ruff mend what it can
	@$(BIN)/ruff check --fix .

constraints: $(STAMP) ## resolve anew and rewrite constraints.txt
	@$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --upgrade --python-version 3.11 \
		--extra dev --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		--output-file constraints.txt pyproject.toml
	@echo "constraints.txt: $$(wc -l < constraints.txt) packages"

bench: $(STAMP) ## the yardstick: RATE events/s for DURATION_S seconds through the whole pipeline
	@$(BIN)/waxwing bench pipeline --rate $(RATE) --seconds $(DURATION_S)

faults: $(STAMP) ## break things under a running flow and count every event; SEED=N, JSON=P, ONLY=NAME,NAME
	@$(BIN)/python -m tests.service.faults $(if $(filter file,$(origin SEED)),,--seed $(SEED)) \
		$(if $(JSON),--json $(JSON)) $(if $(ONLY),--only $(ONLY))

clean: ## remove .venv, caches and what demo left
	@rm -rf $(VENV) .waxwing .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find features models dataflows tests -name __pycache__ -type d -prune -exec rm -rf {} +
