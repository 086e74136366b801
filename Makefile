# Two commands for a newcomer, `make demo` and `make test`; both create .venv, install the package and run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := $(shell find pycl bench triton_kernels csrc -name '*.py' -o -name '*.cpp' -o -name '*.h') \
           CMakeLists.txt pyproject.toml constraints.txt

.PHONY: demo test lint format bench clean

demo: $(VENV)/installed
	$(BIN)/python examples/multiview.py $(DEMO_ARGS)

test: $(VENV)/installed
	PYCL_TEST_REQUIRE=cpu $(BIN)/python -m pytest $(TEST_ARGS)

bench: $(VENV)/installed
	$(BIN)/python -m pycl.bench $(BENCH_ARGS)

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(shell find csrc -name '*.cpp' -o -name '*.h')
	$(BIN)/codespell

format: $(VENV)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell find csrc -name '*.cpp' -o -name '*.h')

# torch first: the constraint then finds the small CPU build, and nothing else can pull in another one
$(VENV)/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) '.[dev]'
	touch $@

$(VENV)/lint: $(VENV)/installed
	$(PIP) '.[lint]'
	touch $@

clean:
	rm -rf build dist $(VENV)
