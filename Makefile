# `make help` lists what there is. Every target sets up .venv by itself and does nothing when it is up to date.

PYTHON ?= python3
WORKERS ?= 2
# For example PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" where the index has CUDA builds only.
PIP_FLAGS ?=

BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Many tests start processes of their own: what those import is compiled once.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check fix build docs library mutants kernels environment clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: environment ## compile SmolLM2, load its real weights, answer a prompt; then train a hybrid for a few steps
	@$(BIN)/python scripts/demo.py

test: check ## lint, types and every test but the slow ones
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow and not library"
	@TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow and not library" tests/interpreted

test-slow: environment ## the tests that take minutes
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m slow
	@TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m slow tests/interpreted

check: environment ## ruff and mypy only
	@$(BIN)/ruff check archc tests scripts
	@$(BIN)/ruff format --check archc tests scripts
	@$(BIN)/mypy archc

fix: environment ## apply what ruff can repair, and format
	@$(BIN)/ruff check --fix archc tests scripts
	@$(BIN)/ruff format archc tests scripts

build: environment ## rebuild generated/ from the specs that it names, then the wheel into dist/
	@$(BIN)/python scripts/rebuild_generated.py
	@rm -rf dist && $(BIN)/python -m build --no-isolation --wheel --outdir dist . >/dev/null && ls dist

docs: environment ## rebuild the pages of docs/ that are generated
	@$(BIN)/python scripts/rebuild_docs.py

library: environment ## hold every law against every mixer of the library, and rebuild the page that says which hold
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "slow or not slow or library" --results docs/library_laws.json \
		tests/library/test_mixers.py tests/laws/test_forms.py tests/laws/test_compile.py tests/laws/test_costs.py \
		-k "library or $$(ls specs/mixers | sed 's/\.yaml//' | paste -sd'|' | sed 's/|/ or /g')"
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m library \
		--ignore tests/library/test_mixers.py --ignore tests/laws
	@TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m library tests/interpreted
	@$(BIN)/python scripts/rebuild_docs.py

mutants: environment ## change one token at a time in templates, rules and library: each change must turn a test red
	@$(BIN)/python -m pytest -q tests/mutants -m "slow or not slow"

kernels: environment ## compile every class of recurrence for every target, and rebuild docs/kernels.md
	@$(BIN)/python scripts/kernel_table.py

environment:
	@PYTHON="$(PYTHON)" PIP_FLAGS="$(PIP_FLAGS)" sh scripts/bootstrap.sh

clean: ## remove .venv, caches and build outputs
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build out
