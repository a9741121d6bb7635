# Two commands on a fresh machine: `make demo` and `make test`. `make help` lists the rest.
# Needs Python 3.11 or newer, a C and a C++ compiler. Everything lies in .venv; `make clean` removes it.

PYTHON ?= python3
ARGS ?=

venv := .venv
python := $(venv)/bin/python
# A stamp is older than what it was made from, or of another place (the tree was moved): install again.
place := $(shell printf '%s' '$(CURDIR)' | cksum | cut -d ' ' -f 1)
made_from := pyproject.toml constraints.txt CMakeLists.txt $(wildcard .ci/llama*) $(wildcard native/*.c native/*.h native/*.cu)
for_run := $(venv)/.installed-run-$(place)
for_dev := $(venv)/.installed-dev-$(place)

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test quick fuzz install lint format types c-strict sanitize wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 18

demo: $(for_run) ## install what running needs, then run `ggext demo` and write its report
	$(venv)/bin/ggext demo --html demo-report.html

test: $(for_dev) ## install what the tests need too, then run them all on every core (ARGS="-k name" for some)
	$(python) -m pytest --numprocesses auto --dist worksteal $(ARGS)

quick: $(for_dev) ## the tests but for the slow ones, as after each change (ARGS as above)
	$(python) -m pytest --numprocesses auto --dist worksteal -m "not slow" $(ARGS)

install: $(for_run) ## install what running needs into .venv

SECONDS ?= 3600
SEED ?= $(shell date +%s)

fuzz: $(for_dev) ## damaged models and headers, hostile texts, templates and grammars for an hour (SECONDS, SEED)
	$(python) tests/hostile/fuzz.py $(SECONDS) $(SEED) $(venv)/fuzz

lint: $(for_dev) ## ruff: rules and format; clang-format, where it is installed
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	@if command -v clang-format >/dev/null; then clang-format --dry-run -Werror native/*.c native/*.h; \
	    else echo "native/ is not checked: there is no clang-format (Debian: apt install clang-format)"; fi

format: $(for_dev) ## let ruff repair what it can, and wrap the pages
	$(python) -m ruff check --fix-only .
	$(python) -m ruff format .
	$(python) tools/wrap_pages.py
	@if command -v clang-format >/dev/null; then clang-format -i native/*.c native/*.h; fi

# converters/ is ggext.converters only where it is installed: mypy gets a tree of links that looks like that.
types: $(for_dev) ## mypy, strict, on ggext and ggext.converters
	@rm -rf $(venv)/types && mkdir -p $(venv)/types/ggext
	@ln -s $(addprefix ../../../,$(wildcard ggext/*) converters) $(venv)/types/ggext
	cd $(venv)/types && ../bin/python -m mypy --config-file ../../pyproject.toml --cache-dir ../mypy_cache -p ggext

c-strict: $(python) ## build the C extension with all warnings as errors
	@$(python) -m pip wheel . --no-deps --disable-pip-version-check --quiet --wheel-dir $(venv)/c-strict \
	    --config-settings=cmake.define.GGEXT_WERROR=ON
	@echo "C build with warnings as errors: clean"

sanitize: $(for_dev) ## run the C extension's tests under the address and undefined-behaviour sanitizers
	@.ci/sanitize $(python) $(venv)/sanitize

wheel: $(python) ## build the wheel into dist/
	$(python) -m pip wheel . --no-deps --disable-pip-version-check --wheel-dir dist

clean: ## remove .venv and all build products
	rm -rf $(venv) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(python):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	    { echo "ggext: needs Python 3.11 or newer, but $(PYTHON) --version says: $$($(PYTHON) --version 2>&1 | head -n 1)" \
	      "(make PYTHON=python3.12 takes another)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "ggext: $(PYTHON) has no venv module: install it (Debian: apt install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv $(venv) || { rm -rf $(venv); exit 1; }

$(for_run): $(made_from) | $(python)
	@echo "installing ggext with what running needs (numpy, llama-cpp-python, ...) into $(venv)"
	@.ci/install $(python) $(venv)/install.log -e '.[run]' -c constraints.txt
	@touch $@

$(for_dev): $(made_from) | $(python)
	@echo "installing ggext with what the tests need (torch, transformers, llama-cpp-python, ...) into $(venv)"
	@.ci/install $(python) $(venv)/install.log -e '.[dev]' -c constraints.txt
	@touch $@ $(for_run)
