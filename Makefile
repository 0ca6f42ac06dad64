# make demo     builds, installs into .venv with MLX and runs the six programs of examples/mlx
# make test     everything that must hold: format, lint, warnings as errors, C++ tests, Python tests, example programs
# make test-cuda  on a machine with an NVIDIA GPU: all cases on it, graphs, streams, latency, compute-sanitizer
# make lint     the first part of it;  make format  mends what it can
# make bench    the CPU benchmarks;    make wheel   a wheel in dist/;    make mutants  planted faults must fail tests
# Needs python3 >= 3.10 with venv, g++ >= 11 (or clang >= 14) and make; the rest is fetched from PyPI into .venv.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BUILD := build/test
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CPP := $(shell find include src tests examples tools benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.metal' 2>/dev/null)
PYTHON_FOLDERS := $(wildcard python tests tools benchmarks examples)
# where tools/prerequisites.sh puts GoogleTest when the system has none
export GTest_ROOT := $(CURDIR)/build/prerequisites/usr

CONFORMANCE := tests/test_forward.py tests/test_backward.py tests/test_decode.py
# succeeds where the machine has the instruction set that FLASH_ATTENTION_CPU_ISA names and takes another by itself
IS_ANOTHER := import os, sys; from flash_attn import _core; named = _core.isa(); \
              del os.environ['FLASH_ATTENTION_CPU_ISA']; sys.exit(named == _core.isa())

.PHONY: demo test install examples lint format tidy ctest pytest mutants bench wheel clean test-cuda
demo: $(VENV)/.made
	$(PIP) install -q ".[mlx]"
	@$(MAKE) --no-print-directory examples

test: lint install tidy examples ctest pytest

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "needs Python 3.10 or newer, found " + sys.version)'
	tools/prerequisites.sh python $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q --upgrade pip
	@touch $@
$(VENV)/.tools: pyproject.toml | $(VENV)/.made
	$(PIP) install -q --group build --group lint
	@touch $@

# The package with its tests' needs, from a build folder that is kept: only changed files are compiled again.
install: $(VENV)/.tools
	tools/prerequisites.sh googletest
	$(PIP) install -q --no-build-isolation ".[mlx,test]" --config-settings=build-dir=$(BUILD) \
	  --config-settings=cmake.define.FLASH_ATTN_TESTS=ON --config-settings=cmake.define.FLASH_ATTN_WERROR=ON
	$(PIP) install -q --no-deps -r tests/clients.txt

examples:
	@for program in examples/mlx/*.py; do echo "== $$program"; $(BIN)/python $$program || exit 1; done

lint: $(VENV)/.tools
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/ruff check $(PYTHON_FOLDERS)
	$(BIN)/ruff format --check $(PYTHON_FOLDERS)
format: $(VENV)/.tools
	$(BIN)/clang-format -i $(CPP)
	$(BIN)/ruff check --fix $(PYTHON_FOLDERS)
	$(BIN)/ruff format $(PYTHON_FOLDERS)
tidy: install
	@printf '%s\n' $(wildcard src/core/*.cpp src/cpu/*.cpp src/cuda/*.cpp src/cuda/driver/*.cpp) | xargs -n 4 -P 2 $(BIN)/clang-tidy -p $(BUILD) --quiet \
	  --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-deprecated-declarations 2>/dev/null

ctest: install
	$(BIN)/ctest --test-dir $(BUILD) --output-on-failure -j 2
pytest: install
	@for isa in scalar avx2 avx512; do \
	  FLASH_ATTENTION_CPU_ISA=$$isa $(BIN)/python -c "$(IS_ANOTHER)" 2>/dev/null || continue; \
	  echo "== instruction set $$isa"; \
	  FLASH_ATTENTION_CPU_ISA=$$isa $(BIN)/python -m pytest -q $(CONFORMANCE) -k numpy || exit 1; \
	done
	$(BIN)/python -m pytest -q tests
test-cuda: install
	@$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) install -q torch
	$(BIN)/python -m flash_attn
	$(BIN)/python -m pytest -q tests/test_cuda.py
	$(BIN)/python -m pytest -q $(CONFORMANCE) -k torch-cuda
	$(BIN)/python tests/cuda_sanitize.py
mutants: install
	$(BIN)/python tests/mutants.py

bench: $(VENV)/.made
	$(PIP) install -q ".[mlx,bench]"
	$(BIN)/python benchmarks/run.py --backend cpu

wheel: $(VENV)/.made
	$(PIP) wheel -q --no-deps -w dist .

clean:
	rm -rf build dist $(VENV)
