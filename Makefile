# Everything a newcomer needs: `make demo`, `make test`. Each sets up .venv on first use.

PYTHON ?= python3
# Where pip finds torch's CPU wheels: without it, plain `pip install torch` on Linux brings gigabytes
# of CUDA. Set it empty to use pip's own configuration alone.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := export,serve,cpu,otel,tensorboard,bench,dev
LABELS = --build-arg VERSION=$$($(BIN)/python -c 'import lct_deploy; print(lct_deploy.__version__)') \
    --build-arg REVISION=$$(git rev-parse HEAD)

CXX ?= c++
OPERATORS := $(wildcard lct_deploy/kernels/cpu/*.cpp lct_deploy/kernels/cpu/*.h)
SANITIZED = $(CXX) -std=c++17 -O1 -g -Wall -Wextra -Werror -fno-sanitize-recover=all -pthread \
    -Ilct_deploy/kernels/cpu tests/native/operators.cpp lct_deploy/kernels/cpu/attention.cpp

.PHONY: setup demo test check audit check-native format bench bench-serving report docs screenshot docker

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt setup.py $(OPERATORS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt $(if $(TORCH_INDEX),--retries 0 --extra-index-url $(TORCH_INDEX)) torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	$(BIN)/python -m lct_deploy.kernels.cpu
	touch $@

demo: setup
	$(BIN)/lct-deploy demo

# A file stays in one process: its tests share bundles and servers. Where OpenVINO has run in a process, forking
# PyTorch's loaders of data and giving up a build of TensorRT-RTX crash it: the files that run it come by themselves.
OPENVINO_TESTS := tests/test_openvino.py tests/test_runtime.py
test: setup
	$(BIN)/pytest --numprocesses auto --dist loadfile $(addprefix --ignore=,$(OPENVINO_TESTS))
	$(BIN)/pytest --numprocesses auto --dist loadfile $(OPENVINO_TESTS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(MAKE) --no-print-directory audit

# Known vulnerabilities of all that is pinned. Advisories come from PyPI's JSON interface, which mirrors may
# lack: then this says so and passes.
ADVISORIES := https://pypi.org/pypi/pip/25.0/json
audit: setup
	@if $(BIN)/python -c 'import urllib.request as r; r.urlopen("$(ADVISORIES)", timeout=10)' 2>/dev/null; \
	then $(BIN)/pip-audit --strict --no-deps --disable-pip -r constraints.txt; \
	else echo 'audit: not done, this registry has no advisories'; fi

# The C++ of the CPU operators under sanitizers, with a stand-in for onnxruntime.
check-native:
	mkdir -p build/native
	$(SANITIZED) -fsanitize=address,undefined -o build/native/operators-address
	$(SANITIZED) -fsanitize=thread -o build/native/operators-thread
	set -e; for isa in baseline avx2 avx512; do \
	    LCT_CPU_ISA=$$isa build/native/operators-address; \
	    LCT_CPU_ISA=$$isa build/native/operators-thread; \
	done

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What has no other target; docs/measuring.md has the single commands.
bench: setup
	$(BIN)/python -m benchmarks.harness
	$(BIN)/python -m benchmarks.roofline
	$(BIN)/python -m benchmarks.spine
	$(BIN)/python -m benchmarks.attention
	$(MAKE) --no-print-directory report

# The raw rows as docs/benchmarks.md, its plots and the README's headline; a test compares them.
report: setup
	$(BIN)/python -m benchmarks.report

# The server beside others, what it adds, how it lives and how it stops; docs/benchmarks-serving.md has the
# single commands. A step that fails is reported at the end: its rows are written, and the others run.
BUNDLE ?= bundle
bench-serving: setup
	failed=; for step in "peers install" "compare $(BUNDLE)" "overhead $(BUNDLE)" "soak $(BUNDLE)" \
	    "stops $(BUNDLE)" clients; do \
	    echo "== $$step"; $(BIN)/python -m benchmarks.serving.$$step || failed="$$failed [$$step]"; \
	done; test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

# Files that are generated from the code, and committed: tests compare them.
docs: setup report
	$(BIN)/python docs/make_schema.py
	$(BIN)/python docs/make_settings.py
	$(BIN)/python docs/make_dashboard.py
	$(BIN)/python docs/make_recording.py

# The picture of the page in the README; needs Chromium.
screenshot: setup
	$(BIN)/python -m docs.make_screenshot

docker: setup
	docker build --target cpu -t lct-deploy:cpu $(LABELS) .
	docker build --target gpu -t lct-deploy:gpu $(LABELS) .
