# Two commands matter: `make demo` shows the product, `make test` proves it. Both make .venv first, and the C++ kernels with
# it where there is a compiler; nothing else is needed.
PYTHON ?= python3
BIN := .venv/bin
# Tests run in so many processes: one of them seldom keeps two cores busy.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
EXTRAS := cpu,openvino,export,train,mini,bench,dev
NATIVE := $(wildcard native/*)
KERNEL_TESTS := $(addprefix tests/runtime/test_,checks_kernel.py dense_kernel.py graph_kernel.py hybrid_kernel.py maxsim.py postings.py transformer.py)

.PHONY: help install demo test soak sanitize arm lint clean

help:
	@echo "make demo      build and export the mini model, and search the Python docs with it in six languages"
	@echo "make test      what CI runs; make soak takes the slow tests as well"
	@echo "make sanitize  the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make arm       the kernels for ARM in an emulator; Debian: apt install g++-aarch64-linux-gnu qemu-user-static"
	@echo "make lint      ruff and mypy; make install makes .venv; make clean removes all that was made"

install: .venv/installed

# torch first, and the one pinned: another package's range would take a build with gigabytes of CUDA.
.venv/installed: pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

demo: install
	$(BIN)/python demo.py

test: install
	$(PYTEST) -m "not gpu and not slow"

soak: install
	$(PYTEST) -m "not gpu"

# The kernels' tests on kernels built with AddressSanitizer and UndefinedBehaviorSanitizer (gcc), installed beside .venv. That
# hnswlib frees arrays as single objects is not looked for.
sanitize: install
	$(PYTHON) -m venv --without-pip build/sanitize
	$(BIN)/python -c "import sys; print(*[p for p in sys.path if p.endswith('site-packages')], sep='\n')" > "$$(echo build/sanitize/lib/python*/site-packages)/base.pth"
	build/sanitize/bin/python -m pip install --quiet --no-deps -C cmake.define.M3EDGE_SANITIZE=ON -C build-dir=build/sanitize/cmake .
	cd build/sanitize && LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0 bin/python -m pytest -p no:cacheprovider $(addprefix $(CURDIR)/,$(KERNEL_TESTS))

# With the dot product, which all since Apple's first and ARM's Cortex-A76 have.
arm:
	mkdir -p build/arm
	aarch64-linux-gnu-g++ -std=c++17 -O2 -static -march=armv8.2-a+dotprod+fp16 -ffp-contract=off -Wno-psabi -Inative -pthread \
	    tests/native/instruction_sets.cpp $(filter-out native/bindings%,$(wildcard native/*.cpp)) -o build/arm/instruction_sets
	qemu-aarch64-static -cpu max build/arm/instruction_sets

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf .venv build models .pytest_cache .mypy_cache .ruff_cache .hypothesis
