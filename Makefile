# Every target may be run again at any time; setup does nothing when pyproject.toml and constraints.txt are unchanged.
# Another Python for the environment: make setup PYTHON=/path/to/python3.12
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-all golden test-slurm test-slurm-full lint docs bench peers faults fuzz image \
	wheel wheel-test test-lowest audit sbom

VENV := .venv
EXTRAS := test,demo,adapters,torchao,track,wandb,mlflow,deepspeed,docs,s3,ja,sweep,ctranslate2,openvino,serve
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# bf16 where the processor computes in it: elsewhere it is imitated, slower than fp32
DEMO_CONFIG ?= $(shell grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null && echo cpu_bf16 || echo cpu)
OUT ?= runs/golden.json
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
TOOLS := .venv-tools
WHEEL_PYTHON ?= $(PYTHON)
# two test files at a time; JOBS=0 for one process, in which a debugger works. After the crash of a worker the rest would
# wait for ever for the tests that it had
JOBS ?= 2
TESTS := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --durations=10 -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	--max-worker-restart=0
# processes that ranks start would compile the package again, seconds each
export PYTHONDONTWRITEBYTECODE :=
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 24

setup: $(READY) ## an environment in .venv with everything (minutes the first time, at once afterwards)

# torch first and by the exact pin, so that pip takes the build (CPU or CUDA) of the index or folder that it is configured
# for; DeepSpeed comes as source and would otherwise look for CUDA compilers.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'make setup: needs Python 3.11 or newer with venv (Debian: apt-get install python3-venv), or PYTHON=…'; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: setup ## German to English and a fine-tuned BERT on two CPU ranks, to reports, ONNX and int8; about ten minutes
	HF_HUB_OFFLINE=1 $(BIN)/rankzero train demo-translation --config $(DEMO_CONFIG) --run runs/demo-translation
	HF_HUB_OFFLINE=1 $(BIN)/rankzero train demo-sentiment --config $(DEMO_CONFIG) --run runs/demo-sentiment
	@echo 'Both reports are linked by:'
	@$(BIN)/rankzero report runs/demo-translation runs/demo-sentiment --index runs/index.html

test: setup ## every module, engine, task and command with tiny settings. ARGS='-k lanes' for a part
	$(TESTS) -m 'not slow and not slurm_full and not gpu' $(ARGS)

test-slow: setup ## only what `make test` leaves out
	$(TESTS) -m 'slow and not slurm_full and not gpu' $(ARGS)

test-all: test test-slow ## all tests; some skip where a GPU, root or the real corpora (RANKZERO_DATA) are missing

golden: setup ## digests of the weights of both demo recipes after 20 steps, to compare checkouts (tests/test_golden.py). OUT=FILE
	$(BIN)/python tests/golden/weights.py $(OUT)

test-slurm: setup ## jobs on a real SLURM cluster of two nodes on this machine; as root, with slurmctld slurmd slurm-client munge
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/test_slurm*.py $(ARGS)

test-slurm-full: setup ## and what may befall a job of days: pre-emption, time limits, a lost node, twenty kills; half an hour
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/test_slurm_cluster.py tests/test_slurm_full.py -m 'slurm or slurm_full' -s $(ARGS)

faults: setup ## 1,000 rounds of random faults against runs of two ranks, hours; as root on Linux. The same command continues. ARGS='--seed 2'
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.faults --runs 1000 --json runs/faults/faults.json $(ARGS)

fuzz: setup ## 10,000 cases of hostile input: rows, recipes, names, run directories, model files, command lines. ARGS='--seed 2'
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.fuzz --cases 10000 --json runs/fuzz/fuzz.json $(ARGS)

lint: setup ## format, lint, types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup ## the documentation site in site/; broken links fail
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo site/index.html

image: ## a Docker image with every engine, rankzero:VERSION
	docker build --tag rankzero:$(VERSION) .

wheel: setup ## the wheel, dist/rankzero-VERSION-py3-none-any.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

wheel-test: wheel ## train, export and predict with the wheel alone. WHEEL_PYTHON=/path/to/python3.13 for another Python
	.ci/wheel-test $(WHEEL_PYTHON) dist/rankzero-$(VERSION)-py3-none-any.whl

test-lowest: $(TOOLS)/.ready ## tests with the lowest versions that pyproject.toml allows (torch: the pin). ARGS for other tests
	.ci/test-lowest $(PYTHON) $(TOOLS)/bin/uv $(ARGS)

audit: $(TOOLS)/.ready ## known security problems of the pinned packages; 1: some, 3: the advisory service was not reached
	$(TOOLS)/bin/python .ci/audit.py constraints.txt

sbom: setup $(TOOLS)/.ready ## a CycloneDX list of what .venv has, dist/rankzero-VERSION.cdx.json
	@mkdir -p dist
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-reproducible \
		--output-format JSON --output-file dist/rankzero-$(VERSION).cdx.json $(BIN)/python
	@echo dist/rankzero-$(VERSION).cdx.json

$(TOOLS)/.ready: .ci/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet -r .ci/tools.txt
	@touch $@

bench: setup ## data path and training against others, two hours on a quiet machine; needs RANKZERO_DATA and make peers
	$(BIN)/python -m benchmarks.data_path --json runs/bench/data_path.json
	$(BIN)/python -m benchmarks.peers --peers runs/peers --json runs/bench/peers.json

peers: setup ## environments of the trainers that `make bench` compares with, runs/peers
	$(BIN)/python -m benchmarks.peers --setup runs/peers
