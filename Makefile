# Each target makes .venv and installs what it needs when missing, and nothing twice.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
FLAGS ?=

.PHONY: help demo test test-slow test-browser test-kernels test-portable test-oldest lint types docs speed clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       train, evaluate and report seven methods on letters of many scripts (minutes)"
	@echo "make test       the test suite, with the doctests"
	@echo "make test-slow  the tests that take minutes each"
	@echo "make test-browser  the pages in a Chromium that is installed: layout, keyboard, screen readers"
	@echo "make test-portable  the numerical tests as on a processor without vector instructions"
	@echo "make test-oldest    all tests with the oldest versions that are promised (downloads gigabytes)"
	@echo "make test-kernels  the GPU kernels: their values, interpreted, and their compilation for three architectures"
	@echo "make lint       ruff: format and lint"
	@echo "make types      mypy, strict"
	@echo "make docs       the Sphinx site and its gallery, into docs/build/html"
	@echo "make speed      a speed table, this library against its peers: sinkhorn, or TABLE=mmd"
	@echo "FLAGS='...' is passed on, e.g. make test FLAGS='-k sinkhorn'"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp per set of extras: made once, and again only when the requirements change.
$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[cpu,train]"
	@touch $@

$(VENV)/.%: $(VENV)/.core
	$(INSTALL) -e ".[$*]"
	@touch $@

demo: $(VENV)/.core
	$(BIN)/otdml benchmark --dataset glyphs --out runs/demo $(FLAGS)

# Peers that ask for far more than what is compared with; without them, their rows are left out.
$(VENV)/.alone: $(VENV)/.peers
	-$(INSTALL) --no-deps torchcfm lightly && touch $@

test: $(VENV)/.core $(VENV)/.test $(VENV)/.serve $(VENV)/.export $(VENV)/.peers $(VENV)/.docs $(VENV)/.photos \
		$(VENV)/.alone
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(FLAGS)

test-slow: $(VENV)/.core $(VENV)/.test $(VENV)/.export $(VENV)/.peers
	$(BIN)/python -m pytest -m slow $(FLAGS)

test-browser: $(VENV)/.core $(VENV)/.test $(VENV)/.serve $(VENV)/.browser
	$(BIN)/python -m pytest -m browser tests/server tests/benchmarks/test_report_browser.py $(FLAGS)

# The numerical part without vector instructions: no result may depend on the make of the processor beyond rounding.
NUMERICAL = sphere kernels kernel_sums measures derivatives neighbors kmeans costs conventions
test-portable: $(VENV)/.core $(VENV)/.test $(VENV)/.export $(VENV)/.peers
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow and not keops" \
		tests/losses tests/ot $(addprefix tests/test_,$(addsuffix .py,$(NUMERICAL))) $(FLAGS)

# The oldest versions promised, in an environment of their own; what other projects deprecate since is not ours.
OLDEST ?= .venv-oldest
test-oldest:
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet -c constraints-oldest.txt -e ".[cpu,train,serve,photos,test]"
	$(OLDEST)/bin/python -m pytest -n 2 --dist loadgroup -W ignore::DeprecationWarning \
		-W ignore::PendingDeprecationWarning $(FLAGS)

# The interpreter of kernels is chosen when they are imported, so their values and their compilation are two runs.
test-kernels: $(VENV)/.core $(VENV)/.test $(VENV)/.triton
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 -m kernels tests/ot/engines tests/_fused tests/losses/alignment $(FLAGS)
	$(BIN)/python -m pytest -n 2 -m kernels tests/_fused/test_compilation.py $(FLAGS)
	$(BIN)/python -W ignore -m otdml._fused._triton_report

lint: $(VENV)/.lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.core $(VENV)/.lint $(VENV)/.serve
	$(BIN)/mypy

docs: $(VENV)/.core $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/build/html $(FLAGS)

speed: $(VENV)/.core $(VENV)/.alone
	$(BIN)/otdml speed $(or $(TABLE),sinkhorn) $(FLAGS)

clean:
	rm -rf $(VENV) docs/build docs/gallery runs .mypy_cache .ruff_cache .pytest_cache
