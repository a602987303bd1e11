# The first command of either kind makes the environment: `make rescue`, `make test`.

PYTHON ?= python3
BIN := .venv/bin
SAMPLE ?= 12

.PHONY: help rescue figures runs benchmark accelerator test lint types pytest test-long mutants clean

## What there is to make
help:
	@awk '/^## / { says = says "\n      " substr($$0, 4); next } \
	  /^[a-z-]+:/ && says { sub(/:.*/, ""); print "make " $$0 says } { says = "" }' $(MAKEFILE_LIST)

## Two small rescue maps, on the embedded digits, with their pictures: results/rescue/ (a
## perceptron) and results/rescue_transformer/
rescue: .venv/runtime
	$(BIN)/python -m experiments.figures --figure=rescue,rescue_transformer --recompute \
	  --workdir=results

## Every figure and table of the pages: the paper's, the book's and the rescue maps. Many
## hours on two cores; the command goes on where it was stopped.
figures: .venv/runtime
	$(BIN)/python -m experiments.figures --figure=all --recompute --workdir=results/figures
	$(BIN)/python -m experiments.publish

## The single runs of docs/training.md: half an hour on two cores, once their data is there
runs: .venv/runtime
	for name in digits_mlp fashion_mnist_cnn cifar10_cnn; do \
	  $(BIN)/python -m experiments.train --config=configs/$$name.py \
	    --workdir=results/runs/$$name || exit; done
	$(BIN)/python -m experiments.publish

## What a step of each optimizer costs in time and memory: results/benchmark/;
## and the speed of training: results/throughput/
benchmark: .venv/runtime
	$(BIN)/python -m experiments.benchmark --workdir=results/benchmark
	$(BIN)/python -m experiments.throughput --workdir=results/throughput

## Measures this package on an accelerator in minutes, with the JAX of PYTHON and nothing
## else: results/accelerator/; FLAGS=--minutes=4 adds flags
accelerator:
	$(PYTHON) -m experiments.accelerator --workdir=results/accelerator $(FLAGS)

## Lint, types and tests
test: lint types pytest

## Lint alone
lint: .venv/development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

## Types alone
types: .venv/development
	$(BIN)/pyright --pythonpath $(BIN)/python

## Tests alone
pytest: .venv/development
	$(BIN)/pytest --numprocesses=auto

## Tests that take long by nature: kills, whole sizes; before a release
test-long: .venv/development
	$(BIN)/pytest --numprocesses=auto -m long

## Which ways to break the optimizer the tests notice: a sample of SAMPLE in each module
mutants: .venv/mutants
	$(BIN)/python -m tests.lars.mutants --sample=$(SAMPLE)

## Remove the environment and all results
clean:
	rm -rf .venv results runs

.venv/runtime: requirements.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	  f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}; \
	  give another with: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --editable .
	touch $@

.venv/development: .venv/runtime requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements-dev.txt
	touch $@

.venv/mutants: .venv/development requirements-mutants.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements-mutants.txt
	touch $@
