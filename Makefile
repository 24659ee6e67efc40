# make demo   set everything up, train a MASA ViT and its dense baseline on real images, compare them
# make test   set everything up, run the fast tests
# make lint   set everything up, check style and types
# make docs   set everything up, build the documentation site into build/site
# make det    set everything up, with MMDetection
#
# make test-slow     the slow tests: long trainings, several processes, a browser
# make test-all      the fast tests, then the slow ones
# make test-kernels  the numerical tests again, with the kernels of an older CPU
#
# VENV=path       another place for the virtual environment
# PIP_ARGS="..."  options for pip, e.g. a CPU build of torch on Linux:
#                 PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# PYTEST_ARGS="..." options for pytest

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?= -n 2
BIN = $(VENV)/bin
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)
NUMERICAL = $(addprefix tests/,compression export inspection layers models)
STAMP = $(VENV)/.installed
DET_STAMP = $(VENV)/.installed-det
DOCS_STAMP = $(VENV)/.installed-docs

.PHONY: demo test test-slow test-all test-kernels lint docs setup det

demo: $(STAMP)
	$(BIN)/python tools/compare.py configs/cls/vit_tiny_masa_s4_digits.py --with-dense \
		--work-dir work_dirs/demo/$$(date +%Y%m%d_%H%M%S)

test: $(DET_STAMP)
	$(PYTEST) -m 'not slow'

test-slow: $(DET_STAMP)
	$(PYTEST) -m slow

test-all: test test-slow

# tests must pass on every CPU, and their kernels round differently
test-kernels: $(DET_STAMP)
	ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41 \
		$(PYTEST) $(NUMERICAL)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

setup: $(STAMP)

det: $(DET_STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python >= 3.10 is needed, $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -e '.[train,dev]'
	@touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -e '.[docs]'
	@touch $@

$(DET_STAMP): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -e '.[det,train,export,dev]'
	@# mmcv's opencv-python needs libGL, which servers often lack
	@$(BIN)/python -c 'import cv2' 2>/dev/null || $(BIN)/python -m pip install $(PIP_ARGS) \
		--force-reinstall --no-deps 'opencv-python-headless<4.13'
	@touch $@
