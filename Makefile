# make study   a controlled study on the embedded default, from a fresh clone to an HTML report
# make test    the fast tests        make test-slow  the slow ones        make check  ruff and pyright

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STUDY ?= quick
OUT ?= runs/$(STUDY)
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q

.PHONY: study test test-slow check install install-dev clean
.DELETE_ON_ERROR:

study: install
	$(BIN)/steelyard study $(STUDY) --out $(OUT)

test: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow" $(ARGS)

test-slow: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m slow $(ARGS)

check: install-dev
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/pyright

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# The CPU build of torch where one can be had (the default build brings several GB of CUDA), the default build
# on a machine with a GPU or when no CPU build is found.
$(VENV)/.installed: pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned dependencies into $(VENV) (about two minutes, 2 GB)"
	command -v nvidia-smi >/dev/null 2>&1 && $(PIP) torch==2.13.0 \
	  || $(PIP) torch==2.13.0+cpu 2>/dev/null \
	  || $(PIP) torch==2.13.0+cpu --index-url https://download.pytorch.org/whl/cpu 2>/dev/null \
	  || $(PIP) torch==2.13.0
	$(PIP) -c requirements.lock -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-oracles.txt
	$(PIP) -c requirements.lock -e '.[dev,parquet]'
	$(PIP) --no-deps -r requirements-oracles.txt
	touch $@

clean:
	rm -rf build dist *.egg-info src/*.egg-info .pytest_cache .ruff_cache
