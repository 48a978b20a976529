# Every target sets up what it needs; the machine brings Python 3.11 or newer and make.
PYTHON ?= python3
STAMP := .venv/.installed-

.PHONY: demo test check clean
.DELETE_ON_ERROR:

demo: $(STAMP)demo
	.venv/bin/meshkit run examples/hotel

test: $(STAMP)test
	.venv/bin/python -m pytest

check: $(STAMP)check
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright

.venv/bin/python:
	$(PYTHON) -m venv .venv

$(STAMP)demo: .venv/bin/python pyproject.toml
	.venv/bin/python -m pip install --quiet --editable '.[server,cli,reload]'
	touch $@

$(STAMP)test: .venv/bin/python pyproject.toml
	.venv/bin/python -m pip install --quiet --editable '.[test]'
	touch $@

$(STAMP)check: .venv/bin/python pyproject.toml
	.venv/bin/python -m pip install --quiet --editable '.[check]'
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
