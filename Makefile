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
# The compilers of accelerators, too: one each, large (1.3 and 4.4 GB); no accelerator is needed.
TPU_STAMP := .venv-tpu/.installed
GPU_STAMP := .venv-gpu/.installed

.PHONY: help install quickstart test test-slow test-accelerators compile-all lint format docs release clean

help:
	@echo "make quickstart   install, see a trained model write, train a small one, write runs/quickstart/report.html"
	@echo "make test         install, then the tests, each short: some ten minutes on two cores"
	@echo "make test-slow    the long ones: kills, meshes, the recorded set, more variants"
	@echo "make test-accelerators   programs of published size by the compilers of TPUs and GPUs: 15 minutes"
	@echo "make compile-all  many more of them, into benchmarks/compiled_all.md; hours, goes on where it stopped"
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
	$(BIN)/flm quickstart

test: $(STAMP)
	$(PYTEST) -m 'not slow and not accelerators'

test-slow: $(STAMP)
	$(PYTEST) -m slow

$(TPU_STAMP): EXTRAS := tpu,accelerators
$(GPU_STAMP): EXTRAS := cuda,accelerators
# One after the other: both write flm_jax.egg-info.
$(GPU_STAMP): | $(TPU_STAMP)
$(TPU_STAMP) $(GPU_STAMP): setup.cfg pyproject.toml
	@echo "installing flm_jax and a compiler ($(EXTRAS)) into $(@D) (some minutes) ..."
	@$(@D)/bin/python -m pip --version >/dev/null 2>&1 || { rm -rf $(@D); $(PYTHON) -m venv $(@D); }
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[$(EXTRAS)]'
	@touch $@

# Each compiler in a process of its own, at the same time.
test-accelerators: $(TPU_STAMP) $(GPU_STAMP)
	@$(MAKE) --no-print-directory -j2 test-compiler-tpu test-compiler-gpu

test-compiler-%: .venv-%/.installed
	FLM_JAX_COMPILER=$* .venv-$*/bin/python -m pytest -v -m accelerators tests/accelerators

compile-all: $(TPU_STAMP) $(GPU_STAMP)
	@$(MAKE) --no-print-directory -j2 compile-all-tpu compile-all-gpu
	.venv-gpu/bin/python tests/accelerators/compile_all.py table

compile-all-%: .venv-%/.installed
	.venv-$*/bin/python tests/accelerators/compile_all.py $*

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
	rm -rf $(VENV) $(DOCS_VENV) .venv-tpu .venv-gpu site build dist *.egg-info .pytest_cache .ruff_cache
