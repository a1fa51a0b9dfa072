# Every target prepares .venv first; a fresh machine needs only Python and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test slow lint clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:
	@echo "make demo   quantize models/digits_resnet.onnx and compare it with the float model"
	@echo "make test   the tests, with coverage"
	@echo "make slow   the tests marked slow (those on a model corpus need ONNXQ_CORPUS)"
	@echo "make lint   ruff and mypy"
	@echo "make clean  remove the environment, the caches and everything built"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || \
	{ echo "onnxq needs Python 3.11, 3.12 or 3.13, and '$(PYTHON)' is not one:" \
	"name one with 'make PYTHON=python3.12 ...'." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test,lint]"
	@touch $@

demo: $(VENV)/.installed
	@mkdir -p build
	$(BIN)/onnxq optimize models/digits_resnet.onnx --data models/digits.npz \
		-o build/digits_resnet.int8.onnx --report build/report

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --cov --cov-report=term

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage htmlcov .hypothesis
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
