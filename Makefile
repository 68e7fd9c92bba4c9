# One command to see it work, one to test it, one to make the model again.

PYTHON ?= python3
VENV := .venv
# More than there are cores: some tests wait for a broker while others compute.
TEST_PROCESSES ?= 6
CHAOS_SECONDS ?= 900
FUZZ_SECONDS ?= 3600
NATIVE_SECONDS ?= 60
NATIVE_SEED ?= $(shell date +%s)
# Some environments forbid Python to keep what it has compiled; the tests start the worker 700 times.
export PYTHONDONTWRITEBYTECODE :=
PIP_INSTALL := install --quiet --disable-pip-version-check
PIP := $(VENV)/bin/python -m pip $(PIP_INSTALL)

.PHONY: demo test test-fast chaos fuzz fuzz-native compose-test configuration lock sbom benchmark-batches benchmark-caches \
	benchmark-check \
	benchmark-engine benchmark-ladder benchmark-latency benchmark-native benchmark-peers \
	benchmark-replay benchmark-scale benchmark-stream model clean

# Labels a chat, with what running needs and nothing more.
demo: $(VENV)/.runtime
	@echo "Labelling worker/demo/chat.jsonl: 314 lines, of which 8 are broken on purpose."
	@$(VENV)/bin/worker replay worker/demo/chat.jsonl -o build/demo/labels.jsonl \
		--include-text --overwrite --log-level warning || test $$? -eq 3
	@echo
	@$(VENV)/bin/worker view build/demo/labels.jsonl
	@echo
	@echo "The 8 broken lines are in build/demo/labels.jsonl.dead.jsonl, each with the reason:"
	@echo "that is the expected end."

# Lint, types and tests; installs all they need, torch included (7 GB).
test: $(VENV)/.all build/kafka/.jars build/prometheus/.unpacked build/native/libemulated.so
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest --cov -n $(TEST_PROCESSES) --dist loadgroup --no-loadscope-reorder

# For the inner loop: lint, types, and what needs no broker, Prometheus, torch or patience.
test-fast: $(VENV)/.all build/native/libemulated.so
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m 'not slow' \
		--ignore tests/kafka --ignore tests/observe --ignore tests/build

# Workers under random faults, with each guarantee so long; CHAOS_SEED=n repeats a choice of faults.
chaos: $(VENV)/.all build/kafka/.jars
	$(VENV)/bin/python -m tests.kafka.chaos --seconds $(CHAOS_SECONDS) \
		$(if $(CHAOS_SEED),--seed $(CHAOS_SEED))

# Invariants with examples that nobody has thought of, for FUZZ_SECONDS; found ones are kept in build/fuzz.
fuzz: $(VENV)/.all
	$(VENV)/bin/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

# The C++ of the engine under sanitizers, with models, texts and arguments of all kinds.
fuzz-native: build/native/fuzz
	build/native/fuzz $(NATIVE_SECONDS) $(NATIVE_SEED)

# docker compose up and all that it promises, on a Docker engine.
compose-test: $(VENV)/.all
	$(VENV)/bin/python -m tests.compose.live

# The engine beside its bare matrix products, and beside stock onnxruntime.
benchmark-engine: $(VENV)/.all
	$(VENV)/bin/python -m benchmarks.engine

# The native engine beside onnxruntime, with every backend of this machine.
benchmark-native: $(VENV)/.all
	$(VENV)/bin/python -m benchmarks.native $(if $(TEXTS),--texts $(TEXTS))

# From a padded BERT to this engine, rung by rung; renews docs/ladder.*.
benchmark-ladder: $(VENV)/.all
	$(VENV)/bin/python -m benchmarks.ladder --write docs $(if $(TEXTS),--texts $(TEXTS))

# What worker replay takes: start, memory, processes.
benchmark-replay: $(VENV)/.all
	$(VENV)/bin/python -m benchmarks.replay $(if $(TEXTS),--texts $(TEXTS))

# What a message costs by length, batch, known messages, partitions.
benchmark-scale: $(VENV)/.all build/kafka/.jars
	$(VENV)/bin/python -m benchmarks.scale $(if $(TEXTS),--texts $(TEXTS))

# Batches of one length or of all, and token budgets.
benchmark-batches: $(VENV)/.all
	$(VENV)/bin/python -m benchmarks.batches $(if $(TEXTS),--texts $(TEXTS))

# What remembering is worth and what it costs.
benchmark-caches: $(VENV)/.all
	$(VENV)/bin/python -m benchmarks.caches $(if $(TEXTS),--texts $(TEXTS))

# How soon labels are there under an open load.
benchmark-latency: $(VENV)/.all build/kafka/.jars
	$(VENV)/bin/python -m benchmarks.latency $(if $(TEXTS),--texts $(TEXTS))

# Whether what should be faster still is, by ratios; a minute.
benchmark-check: $(VENV)/.all
	$(VENV)/bin/python -m benchmarks.check

# What a user would pick instead, each in a pinned environment (7 GB under build/).
benchmark-peers: $(VENV)/.all build/kafka/.jars
	$(VENV)/bin/python -m benchmarks.peers --write docs $(if $(TEXTS),--texts $(TEXTS))

# Throughput, latency and costs of worker run; TEXTS=file has a message a line.
benchmark-stream: $(VENV)/.all build/kafka/.jars
	$(VENV)/bin/python -m benchmarks.stream $(if $(TEXTS),--texts $(TEXTS))

# Makes the built-in model again: make model DATA=folder with GoEmotions' ekman files.
model: $(VENV)/.all
	test -n "$(DATA)"
	rm -rf build/emotion build/model
	$(VENV)/bin/worker finetune --train $(DATA)/train.tsv --dev $(DATA)/dev.tsv \
		--label-names $(DATA)/labels.txt -o build/emotion
	$(VENV)/bin/worker prepare build/emotion -o build/model --name emotion --max-tokens 256 \
		--eval $(DATA)/dev.tsv --label-names $(DATA)/labels.txt \
		--calibrate $(DATA)/train.tsv
	rm -rf worker/models/emotion
	mv build/model worker/models/emotion
	$(VENV)/bin/worker evaluate worker/models/emotion $(DATA)/test.tsv \
		--label-names $(DATA)/labels.txt

# Makes configs/worker.toml and docs/configuration.md from the table of settings.
configuration: $(VENV)/.all
	$(VENV)/bin/python -m worker.settings.documents .

# The broker that tests run against; where it cannot be fetched they skip.
build/kafka/.jars: tests/kafka/pom.xml
	@if command -v java >/dev/null && command -v mvn >/dev/null; then \
		rm -rf build/kafka && \
		mvn -q -B -Dstyle.color=never -f $< dependency:copy-dependencies -DoutputDirectory=$(CURDIR)/build/kafka && \
		touch $@; \
	else \
		echo "There is no Java or no Maven here: tests with a broker will be skipped."; \
	fi

# The Prometheus that queries and alerts are tested with, from Debian's package, not installed.
build/prometheus/.unpacked:
	@if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then \
		rm -rf $(@D) && mkdir -p $(@D) && cd $(@D) && \
		{ apt-get download -qq prometheus 2>/dev/null || \
			{ apt-get update -qq && apt-get download -qq prometheus; }; } && \
		dpkg-deb -x prometheus_*.deb . && rm prometheus_*.deb && touch $(@F); \
	else \
		echo "There is no apt-get here: tests with Prometheus will be skipped."; \
	fi

# Pins for what pyproject.toml asks for, without addresses; those of the run-time install and of what
# builds the package have the digests of all their files. UPGRADE=1 takes the newest versions.
LOCK := $(VENV)/bin/uv pip compile --quiet --no-annotate --no-emit-index-url --custom-compile-command 'make lock' \
	--python-version 3.11 --python-platform linux
lock: $(VENV)/.all
	$(LOCK) $(if $(UPGRADE),--upgrade) pyproject.toml --all-extras -o constraints.txt
	$(LOCK) -c constraints.txt --generate-hashes pyproject.toml -o requirements/runtime.txt
	$(LOCK) $(if $(UPGRADE),--upgrade) -c constraints.txt --generate-hashes requirements/packaging.in -o requirements/packaging.txt

# What the run-time install consists of, as a CycloneDX document: build/sbom.json.
# Private: what it needs installs into the environment for development.
sbom: private PIP := $(VENV)/bin/python -m pip --python build/runtime/bin/python $(PIP_INSTALL)
sbom: $(VENV)/.all
	rm -rf build/runtime
	$(VENV)/bin/python -m venv --without-pip build/runtime
	$(PIP) --require-hashes -r requirements/runtime.txt
	$(PIP) --no-deps .
	$(VENV)/bin/cyclonedx-py environment build/runtime/bin/python --pyproject pyproject.toml \
		--mc-type application --output-reproducible --of JSON -o build/sbom.json

clean:
	rm -rf build $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

NATIVE_SOURCES := $(filter-out native/fuzz.cpp,$(wildcard native/*.cpp native/*.h native/build.py))

# Every backend of the native engine, with its instructions emulated: tests compare them.
build/native/libemulated.so: $(NATIVE_SOURCES) | $(VENV)/.all
	@mkdir -p $(@D)
	$(VENV)/bin/python native/build.py --emulated -o $@

# By the system's compiler, because the wheel has no sanitizers.
build/native/fuzz: $(NATIVE_SOURCES) native/fuzz.cpp
	@mkdir -p $(@D)
	$(CXX) -std=c++20 -O1 -g1 -DEMULATED $(if $(filter x86_64,$(shell uname -m)),-mavx2 -mfma) \
		-ffp-contract=off -fno-math-errno -fsanitize=address,undefined -fno-sanitize-recover=all -Wno-psabi \
		native/*.cpp -o $@

$(VENV)/.runtime: pyproject.toml requirements/runtime.txt requirements/packaging.txt $(NATIVE_SOURCES) | $(VENV)/bin/python
	$(PIP) --require-hashes -r requirements/runtime.txt -r requirements/packaging.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	@mkdir -p build/demo
	@touch $@

$(VENV)/.all: pyproject.toml constraints.txt $(NATIVE_SOURCES) | $(VENV)/bin/python
	$(PIP) -c constraints.txt --editable '.[build,dev]'
	@mkdir -p build/demo
	@touch $@ $(VENV)/.runtime
