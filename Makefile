# Everything a user or CI types. Needs only Python >= 3.11 with its venv module.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Test processes; a file of tests stays in one of them, so that it compiles its networks once.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
STAMP := $(VENV)/.installed
# The site has an environment of its own, without JAX.
DOCS_VENV ?= .venv-docs
DOCS_STAMP := $(DOCS_VENV)/.installed

.PHONY: help install quickstart test test-slow lint format docs release clean

help:
	@echo "make quickstart   install, train a small model on names, sample, write runs/quickstart/report.html"
	@echo "make test         install, then the tests, each short: some ten minutes on two cores"
	@echo "make test-slow    the long ones: kills, meshes, the recorded set, more variants"
	@echo "make lint         ruff check, format check and types        make format   apply both"
	@echo "make docs         the site, into site/                      make release VERSION=x.y.z"

$(STAMP): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "flm_jax needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.12"; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "making $(VENV) ..."; rm -rf $(VENV); \
	  $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) could not make a virtual environment; install its venv module (Debian: apt install python3-venv)"; exit 2; }; }
	@echo "installing flm_jax and its libraries into $(VENV) (about half a minute) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $(STAMP)

install: $(STAMP)

quickstart: $(STAMP)
	$(BIN)/python -m flm_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
	$(BIN)/python -m flm_jax.main --config=configs/quickstart.py:distill --workdir=runs/quickstart_fmlm

test: $(STAMP)
	$(PYTEST) -m 'not slow'

test-slow: $(STAMP)
	$(PYTEST) -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(DOCS_STAMP): setup.cfg .ci/extra.py
	@echo "installing what makes the site into $(DOCS_VENV) ..."
	@$(DOCS_VENV)/bin/python -m pip --version >/dev/null 2>&1 || { rm -rf $(DOCS_VENV); $(PYTHON) -m venv $(DOCS_VENV); }
	@$(PYTHON) .ci/extra.py docs > $(DOCS_VENV)/requirements.txt
	@$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $(DOCS_VENV)/requirements.txt
	@touch $(DOCS_STAMP)

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/python -m mkdocs build --strict --quiet
	@echo "the site is in site/; to look at it: $(PYTHON) -m http.server --directory site"

release:
	@test -n '$(VERSION)' || { echo "say which: make release VERSION=x.y.z"; exit 2; }
	@$(PYTHON) .ci/release.py $(VERSION) $(if $(COMMIT),--commit)

clean:
	rm -rf $(VENV) $(DOCS_VENV) site build dist *.egg-info .pytest_cache .ruff_cache
