# The commands of this project. `make serve` and `make test` install what they need by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/demo.yaml
PORT ?=
WORKERS ?= 2

WITHOUT_SERVICE := tests/unit tests/parity tests/docs tests/manifests

.PHONY: help install serve test test-quick check bench format manifests train-demo clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-12s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## make .venv with everything pinned in constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; say which with: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -e '.[local,serve,batch,report,heif,tracing,dev]'
	@touch $@

serve: install ## start the service on the embedded demo checkpoint (CONFIG=... for another, PORT=...); Ctrl-C ends it
	@$(BIN)/siglip-serve serve $(CONFIG) $(if $(PORT),--port $(PORT))

test: install ## run every test that needs no GPU
	@$(BIN)/python -m pytest -n $(WORKERS) $(WITHOUT_SERVICE)
	@$(BIN)/python -m pytest tests $(addprefix --ignore=,$(WITHOUT_SERVICE))

test-quick: install ## run the tests that start no service
	@$(BIN)/python -m pytest -n $(WORKERS) tests/unit tests/parity

check: install ## format, lint, types, import rules
	@$(BIN)/ruff format --check serve_app tests tools bench k8s
	@$(BIN)/ruff check serve_app tests tools bench k8s
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/siglip-serve check configs/demo.yaml && $(BIN)/siglip-serve check configs/default.yaml

bench: install ## measure the service beside what one would otherwise use (see bench/README.md)
	@$(BIN)/python -m bench.run

format: install ## format the code and mend what the linter can
	@$(BIN)/ruff format serve_app tests tools bench k8s
	@$(BIN)/ruff check --fix serve_app tests tools bench k8s

manifests: install ## make each overlay's service.yaml of k8s/overlays again from its configuration
	@for folder in k8s/overlays/*/; do $(BIN)/siglip-serve k8s render --config $$folder/config*.yaml --out $$folder/service.yaml || exit 1; done

train-demo: install ## train the demo checkpoint anew (about an hour on two cores)
	@$(BIN)/python -m tools.demo_training --out serve_app/demo/checkpoint

clean: ## remove the environment and caches
	rm -rf $(VENV) .venv-policies bench/.venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
