# Two commands for a newcomer, `make demo` and `make test`; both create .venv, install the package and run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
NATIVE = -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh'
SOURCES := $(shell find pycl bench triton_kernels csrc -name '*.py' -o -name '*.pyi' -o $(NATIVE)) \
           CMakeLists.txt pyproject.toml constraints.txt

.PHONY: demo examples notebooks stubs docs docs-serve objective-table test test-all test-cpus planted-faults sanitize versions
.PHONY: parity lint format bench host-time clean
.PHONY: triton-versions gpu-tables gpu-cache gpu-first gpu-check gpu-test gpu-bench

demo: $(VENV)/installed
	$(BIN)/python examples/multiview_images.py --seeds 3 --loss-cost --out demo-out $(DEMO_ARGS)

# every example for a few steps
examples: $(VENV)/installed
	$(BIN)/python examples/smoke.py $(EXAMPLES)

# every notebook in a kernel of its own, from its own packages; NOTEBOOKS='--write clip' writes what its cells show
notebooks: $(VENV)/notebooks
	$(BIN)/python docs/notebooks/run.py $(NOTEBOOKS)

# workers of a thread each; tests that share what is slow to make stay in one worker
SUITE = OMP_NUM_THREADS=1 PYCL_TEST_REQUIRE=cpu,triton $(BIN)/python -m pytest -n auto $(TEST_ARGS)

test: $(VENV)/installed
	$(SUITE)

# every case of every product, and what takes minutes by itself
test-all: $(VENV)/installed triton-versions
	PYCL_TEST_ALL=1 $(SUITE)

# whether `make test` notices what could go wrong in the kernels
planted-faults: $(VENV)/installed
	$(BIN)/python tests/planted $(FAULTS)

# what depends on rounding once more, as on CPUs with less than this one has
test-cpus: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/cpus.py -n auto $(TEST_ARGS)

# The CPU kernels under AddressSanitizer and UBSan; libstdc++ goes first, too, or a throw finds no interceptor. One process
# whose file descriptors pytest leaves alone: what is found ends it, and is written there.
SANITIZED := build/sanitize
SANITIZE = -fsanitize=address,undefined
SANITIZE_TESTS = $(wildcard tests/backends/test_cpu*.py) $(SANITIZE_ENGINE:%=tests/engine/test_%.py) \
                 tests/sinkhorn/test_sinkhorn.py tests/sinkhorn/test_sinkhorn_cpu.py
SANITIZE_ENGINE := engine cross_entropy maps modifiers slopes extremes average

sanitize: $(SANITIZED)/installed
	LD_PRELOAD="$$(ldd $(SANITIZED)/site/pycl/_C*.so | grep -oE '/\S+lib(asan|ubsan|stdc\+\+)\S+' | tr '\n' ' ')" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1 \
	  PYTHONPATH="$(CURDIR)/$(SANITIZED)/site" $(BIN)/python -m pytest --capture=sys -k "not triton" $(SANITIZE_TESTS) $(TEST_ARGS)

$(SANITIZED)/installed: $(SOURCES) | $(VENV)/installed
	rm -rf $(SANITIZED)/site
	CXXFLAGS="-O1 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS $(SANITIZE)" \
	  LDFLAGS="$(SANITIZE)" PYCL_CPU=ON PYCL_CUDA=OFF $(PIP) --no-deps --target $(SANITIZED)/site \
	  -C build-dir=$(SANITIZED)/objects -C cmake.build-type=Debug -C install.strip=false .
	touch $@

# every Python builds, every torch runs the core tests: the table of docs/versions.md, from tens of GB of CUDA wheels
versions: $(VENV)/installed
	$(BIN)/python tests/versions.py $(VERSIONS_ARGS)

# compilers that users have, beside the installed one: of torch 2.10 and 2.11, of 2.13, and the newest
TRITONS := 3.6.0 3.7.1 3.9.0
triton-versions: $(TRITONS:%=build/triton-%)

build/triton-%: | $(VENV)/installed
	rm -rf $@.part
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@.part triton==$*
	mv $@.part $@

# pycl/modules/losses.pyi, from the signatures of the functions
stubs: $(VENV)/installed
	PYTHONPATH="$(CURDIR):$$PYTHONPATH" $(BIN)/python -m pycl.tools.module_stubs

# docs/objectives.md, from the rows of pycl.testing.objectives and the record of their memory
objective-table: $(VENV)/installed
	PYTHONPATH="$(CURDIR):$$PYTHONPATH" $(BIN)/python -m pycl.tools.objective_table docs/objectives.md \
	  bench/results/cpu-objectives.json

# drop-ins against the libraries themselves, which take 2 GB
parity: $(VENV)/peers
	$(BIN)/python -m pytest tests/compat $(TEST_ARGS)

bench: $(VENV)/installed
	$(BIN)/python -m pycl.bench $(BENCH_ARGS)

# the tables of docs/gpu-kernels.md; a report of kernels with faults fails, too, but then the tables show them
gpu-tables: $(TRITONS:%=build/report-%.json)
	$(BIN)/python -m pycl.tools.triton_tables docs/gpu-kernels.md $^

build/report-%.json: $(SOURCES) | build/triton-%
	rm -f $@
	PYTHONPATH="$(CURDIR)/build/triton-$*:$(CURDIR)" $(BIN)/python -m pycl.tools.triton_report \
	  --arch 90 --predict --json $@ $(REPORT_ARGS) >$@.txt || test -s $@

# launches and the host's time of a step, on a GPU that is not there
host-time: $(VENV)/installed
	PYTHONPATH=tests $(BIN)/python -m null_gpu.host_time $(HOST_ARGS)

# $(PYTHON) with its own CUDA torch and Triton stays as it is: pycl, and what WHEELS=DIR holds, go into a folder beside
GPU_SITE := build/gpu-site
GPU_PYTHON = PATH="$(CURDIR)/$(GPU_SITE)/bin:$$PATH" PYTHONPATH="$(CURDIR)/$(GPU_SITE):$$PYTHONPATH" $(PYTHON)
GPU_PIP = $(GPU_PYTHON) -m pip install --quiet --disable-pip-version-check --no-index --no-deps --target $(GPU_SITE)

# On a machine without a GPU: everything that gpu-first needs, into .gpu/, by the Python, torch and Triton that the GPU
# machine has, since a cache's keys are hashes of Triton's own files.
GPU_CACHE_PYTHON ?= python3.12
gpu-cache:
	@command -v $(GPU_CACHE_PYTHON) >/dev/null || { \
	  echo "gpu-cache: no $(GPU_CACHE_PYTHON); GPU_CACHE_PYTHON=... names the Python to compile with" >&2; exit 2; }
	@cd bench && $(GPU_CACHE_PYTHON) -m first.fill $(GPU_CACHE_ARGS)

# there: installs and builds nothing, whatever the times of the carried files are
gpu-first:
	@cd bench && $(PYTHON) -m first $(if $(OUT),$(abspath $(OUT))) $(GPU_FIRST_ARGS)

gpu-check:
	@$(PYTHON) -c 'import sys; from pycl.bench.measure.gpu import why_not; sys.exit(why_not() and f"{sys.executable}: {why_not()}")'
	$(MAKE) gpu-test
	$(MAKE) gpu-bench

gpu-test: $(GPU_SITE)/installed
	$(GPU_PYTHON) -m pycl.doctor
	$(GPU_PYTHON) -m pytest tests/backends/test_triton_gpu.py tests/backends/test_cuda_gpu.py $(TEST_ARGS)
	PYCL_TEST_DEVICE=cuda $(GPU_PYTHON) -m pytest tests/losses/test_losses.py $(TEST_ARGS)

# a refused row fails the target, but only after the page shows it
gpu-bench: $(GPU_SITE)/installed
	status=0; \
	$(GPU_PYTHON) -m pycl.bench --suite gpu --json bench/results $(if $(COMMIT),--commit $(COMMIT)) $(BENCH_ARGS) || status=$$?; \
	test $$status -eq 2 || $(GPU_PYTHON) -m pycl.bench.present.page docs/benchmarks.md || status=$$?; \
	exit $$status

$(GPU_SITE)/installed: $(SOURCES) $(if $(WHEELS),$(wildcard $(WHEELS)/*.whl))
	rm -rf $(GPU_SITE)
	$(if $(WHEELS),$(GPU_PIP) $(WHEELS)/*.whl)
	$(GPU_PIP) --no-build-isolation .
	touch $@

# with pycl installed, as a user's mypy sees it; constraints.txt pins the tools
lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(shell find csrc tests bench $(NATIVE))
	$(BIN)/codespell

format: $(VENV)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell find csrc tests bench $(NATIVE))

# torch first: the constraint then finds the small CPU build, and nothing else can pull in another one
$(VENV)/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) '.[dev]'
	touch $@

$(VENV)/peers: $(VENV)/installed
	$(PIP) '.[peers]'
	touch $@

$(VENV)/notebooks: $(VENV)/installed
	$(PIP) '.[notebooks]'
	touch $@

$(VENV)/lint: $(VENV)/installed
	$(PIP) '.[lint]'
	touch $@

$(VENV)/docs: $(VENV)/installed
	$(PIP) '.[docs]'
	touch $@

# the site in build/site, with the code of all pages run first; it fetches nothing when it is looked at
docs: $(VENV)/docs
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pycl.tools.site $(DOCS_ARGS)

# the same on http://127.0.0.1:8000, without running code; pages of docs are built anew when they change
docs-serve: $(VENV)/docs
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m mkdocs serve $(DOCS_ARGS)

clean:
	rm -rf build dist $(VENV)
