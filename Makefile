# make demo       install into .venv, judge h8E512 and RootSIFT on the built-in scene, write one page to look at
# make test       what every change must pass: ruff, mypy, pytest without the slow tests
# make test-all   the same with the slow tests (and those for a GPU, where one is), and the pages
# make docs       build the pages into docs/_build/html, in .venv-docs; a warning or a broken link is an error
# make tables     the numbers of README, pages and model cards again: make tables DATA=DIR WEIGHTS=DIR; see docs/make_tables.py
# make weights    the way to the released weights: make weights DATA=DIR; see docs/make_weights.sh (hours of a core)
# make test-oldest  the library's tests on the oldest torch, kornia and numpy that the metadata admits, in .venv-oldest
# make clean      remove what building and testing leave behind; distclean removes .venv, .venv-oldest and .venv-docs too
#
# PYTHON          the interpreter that .venv is made from (3.11 or newer)
# PIP_ARGS        added to every pip call, e.g. PIP_ARGS="--no-index --find-links DIR"
# TORCH_PIP_ARGS  added to the calls that install torch, e.g. the index of the CPU or CUDA build you want
# DATA            of `make tables` and `make weights`: a folder of photographs
# WEIGHTS, TABLES_ARGS  of `make tables`: a folder, and more flags, e.g. TABLES_ARGS="--only readme demo"

PYTHON ?= python3
PIP_ARGS ?=
TORCH_PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
PIP := $(BIN)/python $(PIP_INSTALL)
DOCS := .venv-docs
OLDEST := .venv-oldest
OLDEST_PIP := $(OLDEST)/bin/python -m pip install --disable-pip-version-check -c constraints-oldest.txt $(PIP_ARGS)
EDITABLE := --no-build-isolation -e

.DELETE_ON_ERROR:
.PHONY: demo docs tables weights test test-all test-oldest lint clean distclean

demo: $(VENV)/.installed
	$(BIN)/python -m eval imw --desc h8E512 rootsift --out runs/demo
	$(BIN)/python -m eval report runs/demo --out runs/demo/page --title "h8E512 and RootSIFT on the built-in scene"

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-all: lint docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 -m "not slow" tests/kornia_hardnet8

docs: $(DOCS)/.installed
	rm -rf docs/_build docs/_generated
	$(DOCS)/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "the pages: docs/_build/html/index.html"

tables: $(VENV)/.installed
	$(BIN)/python docs/make_tables.py $(if $(DATA),--data $(DATA)) $(if $(WEIGHTS),--weights $(WEIGHTS)) $(TABLES_ARGS)

weights: $(VENV)/.installed
	PYTHON=$(BIN)/python bash docs/make_weights.sh "$(DATA)" runs/weights

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A stamp is touched last, so that an installation which failed is taken up again by the next call.
# torch comes first and alone: whichever build that call picks satisfies everything that follows.
$(VENV)/.installed: setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: $(PYTHON) is not Python 3.11 or newer: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_PIP_ARGS) torch setuptools wheel
	$(PIP) $(EDITABLE) ".[eval,train,onnx,openvino]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) $(EDITABLE) ".[eval,train,onnx,openvino,poselib,dask,heic,dev]"
	@touch $@

$(DOCS)/.installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python $(PIP_INSTALL) $(TORCH_PIP_ARGS) torch setuptools wheel
	$(DOCS)/bin/python $(PIP_INSTALL) $(EDITABLE) ".[docs]"
	@touch $@

# What the tests need beside the library is as new as the old numpy lets it be.
$(OLDEST)/.installed: setup.cfg constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST_PIP) $(TORCH_PIP_ARGS) torch setuptools wheel
	$(OLDEST_PIP) $(EDITABLE) ".[onnx]" hypothesis opencv-python-headless pycolmap pytest pytest-xdist
	@touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis docs/_build docs/_generated
	find kornia_hardnet8 common train eval benchmarks rendered tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(OLDEST) $(DOCS)
