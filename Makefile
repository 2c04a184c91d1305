# The environment's Python; `make PYTHON=python3.12 demo` takes another.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.complete
LOADERS := .venv-loaders
DEMO := checkpoint/demo
PAGES ?= all
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# The many processes of tests and docs do not compile the same modules again, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-all docs readme kills dist loaders lint format benchmark clean

demo: $(SETUP)  ## fine-tune the embedded checkpoint on the embedded reviews, then predict one
	$(BIN)/python run_classifier.py --pretrained_model_name_or_path data/bert-tiny-zh \
		--train_data_file data/reviews/train.txt --dev_data_file data/reviews/dev.txt \
		--label_file data/reviews/labels.txt --saved_dir $(DEMO) \
		--epochs 6 --learning_rate 1e-3 --warmup_proportion 0.1 --save_steps 30
	@$(BIN)/python -c 'import transformers; transformers.logging.disable_progress_bar(); \
		text = "房间干净，早餐也丰富，下次还住这里。"; \
		result = transformers.pipeline("text-classification", model="$(DEMO)")(text)[0]; \
		print(text, "→", result["label"], format(result["score"], ".3f"))'

test: $(SETUP)  ## every module and every promise in a few minutes, a process for each core
	$(PYTEST) --numprocesses auto --dist worksteal -m "not slow" --hypothesis-profile fast

test-all: $(SETUP)  ## the whole test suite, also what kills processes, starts launchers and walks all combinations
	$(PYTEST) --numprocesses auto --dist worksteal

docs: $(SETUP)  ## the generated pages of docs/
	$(BIN)/python -m docs.generate

readme: demo  ## every command of the README and the docs that needs nothing from elsewhere; PAGES=main leaves out two pages
	BERTORCH_TEST_README=$(PAGES) $(BIN)/python -m pytest -s tests/test_readme.py

kills: $(SETUP)  ## the nightly variant: runs that are killed 20 times, and both faults at every single file operation
	BERTORCH_TEST_KILLS=20 $(PYTEST) tests/test_interruption.py -k killed_at_random
	BERTORCH_TEST_KILLS=20 $(PYTEST) --numprocesses auto tests/training/test_every_operation.py

dist: $(SETUP)  ## dist/: wheel and source distribution, checked; the demo with the wheel in a new environment and an empty folder
	rm -rf dist
	BERTORCH_TEST_DIST=$(CURDIR)/dist $(PYTEST) tests/test_packaging.py

loaders: $(SETUP) $(LOADERS)/.complete  ## exports in the loaders of others, also in those of optimum-onnx, whose environment takes two minutes and 1.5 GB (so CI has none)
	$(PYTEST) tests/test_loaders.py

lint: $(SETUP)  ## style and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(SETUP)  ## put the style right where a tool can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

benchmark: $(SETUP)  ## packed against padded steps, whole runs and whole commands against peers, a CRF against others, a global pointer against its formula, the token cache, inference, search, a busy machine
	$(BIN)/python -m benchmarks.classifier_step
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.end_to_end
	$(BIN)/python -m benchmarks.end_to_end --case saving
	$(BIN)/python -m benchmarks.tagger_step
	$(BIN)/python -m benchmarks.crf
	$(BIN)/python -m benchmarks.global_pointer
	$(BIN)/python -m benchmarks.token_cache
	$(BIN)/python -m benchmarks.inference
	$(BIN)/python -m benchmarks.search
	$(BIN)/python -m benchmarks.tricks
	$(BIN)/python -m benchmarks.busy

clean:  ## remove the environments, the distributions and the demo's weights
	rm -rf .venv $(LOADERS) bertorch.egg-info dist $(DEMO)

$(SETUP): requirements.txt pyproject.toml tests/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint tests/constraints.txt --editable '.[dev,benchmarks]'
	touch $@

$(LOADERS)/.complete: tests/loaders.txt
	$(PYTHON) -m venv --clear $(LOADERS)
	$(LOADERS)/bin/python -m pip install --quiet --requirement tests/loaders.txt
	touch $@
