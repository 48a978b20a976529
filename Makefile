# Every target sets up what it needs; the machine brings Python 3.11 or newer and make.
PYTHON ?= python3
STAMP := .venv/.installed-
# Tests that run one way alone: what they show is the same whichever way bytes take to the socket.
ONE_WAY := benchmarks cli discovery examples launcher layers quota telemetry typing test_docs.py

.PHONY: demo test check bench clean
.DELETE_ON_ERROR:

# OBSERVE=1 starts `meshkit metrics` and Prometheus beside it.
demo: $(STAMP)demo
	$(if $(OBSERVE),.venv/bin/python examples/hotel/observe.py,.venv/bin/meshkit run examples/hotel)

test: $(STAMP)test
	.ci/prometheus
	.ci/postgresql
	.venv/bin/python -m pytest
	MESHKIT_FAST_PATH=off .venv/bin/python -m pytest $(ONE_WAY:%=--ignore tests/%)

check: $(STAMP)check
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright

# Every figure of docs/performance.md, in an hour; QUICK=1 only shows that it works.
# In an environment of its own: nats-py loads aiohttp, say, where it is installed, and takes longer and more memory.
bench: .venv-bench/suite/.installed
	.venv-bench/suite/bin/python -m benchmarks $(if $(QUICK),--quick) --json benchmarks.json --plots benchmark-plots

.venv/bin/python:
	$(PYTHON) -m venv .venv

$(STAMP)demo: .venv/bin/python pyproject.toml
	.venv/bin/python -m pip install --quiet --editable '.[server,cli,reload,uvloop]'
	touch $@

$(STAMP)test: .venv/bin/python pyproject.toml
	.venv/bin/python -m pip install --quiet --editable '.[test]'
	touch $@

$(STAMP)check: .venv/bin/python pyproject.toml
	.venv/bin/python -m pip install --quiet --editable '.[check]'
	touch $@

.venv-bench/suite/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --editable '.[bench]'
	touch $@

clean:
	rm -rf .venv .venv-bench .pytest_cache .ruff_cache .hypothesis
