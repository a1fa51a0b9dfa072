# Every target prepares the environment it needs; a fresh machine needs only Python and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Exact versions of all that is installed, build tools included; `make constraints` writes them.
PINNED := constraints/pinned.txt
OLDEST := constraints/oldest.txt

PIP := -m pip install --quiet --disable-pip-version-check
# Constraints as variables hold for the environments that pip builds packages in, too.
held_to = PIP_CONSTRAINT=$(1) PIP_BUILD_CONSTRAINT=$(1)
resolve = printf '%s\n' "setuptools>=77" "build>=1.2" | UV_CUSTOM_COMPILE_COMMAND="make constraints" \
	$(BIN)/uv pip compile pyproject.toml - --quiet --upgrade \
	--universal --python-version 3.11 --no-annotate

# Modules that were compiled are kept, also where the environment says otherwise, as in containers:
# every process that a test starts would compile the whole package.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test slow lint docs release-check compat oldest newest constraints clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:
	@echo "make demo         quantize models/digits_resnet.onnx and compare it with the float model"
	@echo "make test         the tests"
	@echo "make slow         the tests marked slow (those on a model corpus need ONNXQ_CORPUS)"
	@echo "make lint         ruff and mypy"
	@echo "make docs         the documentation, in build/docs/html"
	@echo "make release-check  build sdist and wheel, and run the main job from them in a clean environment"
	@echo "make oldest       the tests with the oldest dependencies that pyproject.toml allows, without torch"
	@echo "make newest       the tests with the newest ones there are"
	@echo "make compat       both"
	@echo "make constraints  write the versions that all but 'newest' install, in constraints/"
	@echo "make clean        remove the environments, the caches and everything built"

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || \
	{ echo "onnxq needs Python 3.11, 3.12 or 3.13, and '$(PYTHON)' is not one:" \
	"name one with 'make PYTHON=python3.12 ...'." >&2; exit 1; }
	$(PYTHON) -m venv $*

$(VENV)/.installed: pyproject.toml $(PINNED) | $(BIN)/python
	$(call held_to,$(PINNED)) $(BIN)/python $(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(call held_to,$(PINNED)) $(BIN)/python $(PIP) --editable ".[test,lint,train]" build
	@touch $@

$(VENV)-oldest/.installed: pyproject.toml $(OLDEST) | $(VENV)-oldest/bin/python
	$(call held_to,$(OLDEST)) $(VENV)-oldest/bin/python $(PIP) --editable ".[test]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(call held_to,$(PINNED)) $(BIN)/python $(PIP) --editable ".[docs]"
	@touch $@

demo: $(VENV)/.installed
	@mkdir -p build
	$(BIN)/onnxq optimize models/digits_resnet.onnx --data models/digits.npz \
		-o build/digits_resnet.int8.onnx --report build/report

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto $(ARGS)

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow -n auto --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --fresh-env --quiet \
		docs build/docs/html

# Modules of deleted files would stay in build/lib, and come into the wheel.
release-check: $(VENV)/.installed-dev
	rm -rf build/release build/lib build/bdist.*
	$(call held_to,$(PINNED)) $(BIN)/python -m build --outdir build/release . >build/release.log
	$(call held_to,$(PINNED)) $(BIN)/python -m build --wheel --outdir build/release/tree . \
		>>build/release.log
	$(BIN)/python .ci/release.py build/release $(PINNED)

compat: oldest newest

oldest: $(VENV)-oldest/.installed
	$(VENV)-oldest/bin/python -m pytest -n auto

# Nothing holds this one, so it is brought up to date each time, and where that gives what is pinned
# anyway there is nothing to find out; without torch, whose newest release may be gigabytes, and
# whose tests are skipped then.
newest: | $(VENV)-newest/bin/python
	$(VENV)-newest/bin/python $(PIP) --upgrade --upgrade-strategy eager --editable ".[test]"
	@sed 's/ ;.*//' $(PINNED) > $(VENV)-newest/pinned.txt
	@if $(VENV)-newest/bin/python -m pip --disable-pip-version-check freeze --exclude-editable | \
	tr '_A-Z' '-a-z' | grep -vxFf $(VENV)-newest/pinned.txt; then \
	echo "'make test' runs with other versions of these."; \
	$(VENV)-newest/bin/python -m pytest -n auto; \
	else echo "The newest versions are those that 'make test' runs with."; fi

constraints: | $(BIN)/python
	$(BIN)/python $(PIP) --upgrade uv
	$(resolve) --extra test --extra lint --extra train --extra docs --output-file $(PINNED)
	$(resolve) --extra test --resolution lowest-direct --output-file $(OLDEST)

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest build dist *.egg-info .coverage htmlcov
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
