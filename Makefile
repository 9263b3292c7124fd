# Two commands matter: `make demo` shows the product, `make test` proves it. Both make .venv first; nothing else is needed.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := cpu,export,train,mini,eval,dev

.PHONY: install demo test soak lint clean

install: .venv/installed

# torch first, and the one pinned: another package's range would take a build with gigabytes of CUDA.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

demo: install
	$(BIN)/python demo.py

test: install
	$(BIN)/python -m pytest -m "not gpu and not slow"

soak: install
	$(BIN)/python -m pytest -m "not gpu"

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf .venv build models .pytest_cache .mypy_cache .ruff_cache .hypothesis
