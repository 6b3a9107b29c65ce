PYTHON ?= python3
BIN := .venv/bin
EXTRAS ?= dev
PROCESSES ?= 2
FUZZ_SECONDS ?= 1800
TREES_SECONDS ?= 600
TORTURE_KILLS ?= 50
STUDIES ?= all

INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt
PYTEST = $(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal
# Whole runs of real networks: compiled as users' are, which takes five times as long as what other tests do with.
OPTIMIZED = TLJAX_TEST_OPTIMIZED=1 $(PYTEST)
# Where ARGS may have chosen tests of another line: pytest's status 5.
OR_NONE = || test $$? = 5 -a -n '$(ARGS)'
FAST = not slow and not real_data and not peer and not studies and not browser and not notebooks

.PHONY: demo test test-one test-devices test-slow test-optimized test-real test-studies test-browser test-notebooks test-peer
.PHONY: test-all lint reviewer bench bench-defaults torture fuzz fuzz-data docs clean

demo: .venv/installed
	$(BIN)/python -m tljax.main $(ARGS)

# What needs no real data, no peer, no browser and no minutes. ARGS may name files or tests (-k), not markers.
test: test-one test-devices

test-one: .venv/installed
	$(PYTEST) -m '$(FAST) and not devices' $(ARGS)

test-devices: .venv/installed
	TLJAX_TEST_DEVICES=4 $(PYTEST) -m '$(FAST) and devices' $(ARGS) $(OR_NONE)

test-slow: .venv/installed
	$(PYTEST) -m 'slow and not real_data' $(ARGS)

# What is counted in operations, and what rounds, also as users' programs do.
test-optimized: .venv/installed
	$(OPTIMIZED) -m '$(FAST) and not devices' tests/engine/test_steps.py tests/data/test_geometry.py tests/data/test_augment.py \
	  tests/models/test_batch_norm.py $(ARGS)

# In double precision Eigen's convolutions take 7 times as long as what XLA would choose.
test-real: .venv/installed
	$(OPTIMIZED) -m 'real_data and not peer and not parity' $(ARGS) $(OR_NONE)
	TLJAX_TEST_LIBRARIES=xla $(OPTIMIZED) -m parity $(ARGS) $(OR_NONE)

test-studies: .venv/installed
	TLJAX_STUDIES=$(STUDIES) $(PYTEST) -n 0 -m studies $(ARGS)

test-browser: .venv/browser
	$(PYTEST) -n 0 -m browser $(ARGS)

test-notebooks: .venv/docs
	$(OPTIMIZED) -n 1 -m notebooks $(ARGS)

test-peer: .venv/peer
	$(PYTEST) -m 'peer and not real_data' $(ARGS) $(OR_NONE)
	$(OPTIMIZED) -m 'peer and real_data' $(ARGS) $(OR_NONE)

test-all: test test-slow test-optimized test-real test-studies test-browser test-notebooks test-peer

# Beside PyTorch; 33 minutes on 2 quiet cores.
bench: .venv/peer
	$(BIN)/python benchmarks/run.py $(ARGS)

# The default beside others' defaults, at most 90 minutes at a time; the same command goes on.
bench-defaults: .venv/peer
	$(BIN)/python benchmarks/defaults.py $(ARGS)

# Recomputes every number and verdict of docs/results from the answers beside each page; ARGS=--write writes the pages.
reviewer: .venv/installed
	$(BIN)/python benchmarks/reviewer.py $(ARGS)

# Kills runs at random moments and compares their ends; about 14 minutes for the 50 kills of default.
torture: .venv/installed
	TORTURE_KILLS=$(TORTURE_KILLS) $(BIN)/python -m tests.torture $(ARGS)

# Hostile weights: mutates them for FUZZ_SECONDS and says what was lost; Linux only.
fuzz: .venv/fuzz
	$(BIN)/python -m tests.fuzz.run $(FUZZ_SECONDS)

# Random folders of images, trained on for one step or refused, for TREES_SECONDS; says what was lost.
fuzz-data: .venv/installed
	$(BIN)/python -m tests.fuzz.trees $(TREES_SECONDS)

# The site, in build/site; a warning is an error.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

# uv does not read pip's settings: a mirror is named by UV_DEFAULT_INDEX.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo "tljax needs Python 3.11 to 3.13: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(INSTALL) --editable '.[$(EXTRAS)]'
	touch $@

# By pip, which is led to a build without CUDA where there is one. torchvision's compiled operators do not load beside
# such a torch; nothing here needs them.
.venv/peer: .venv/installed
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --no-deps torchvision==0.28.0
	$(INSTALL) --editable '.[$(EXTRAS),ray,mlflow,wandb]'
	touch $@

.venv/fuzz: .venv/installed
	$(INSTALL) --editable '.[$(EXTRAS),fuzz]'
	touch $@

.venv/docs: .venv/installed
	$(INSTALL) --editable '.[$(EXTRAS),docs]'
	touch $@

# Its tests start the system's Chromium (apt-get install chromium), or that of TLJAX_CHROMIUM.
.venv/browser: .venv/installed
	$(INSTALL) --editable '.[$(EXTRAS),browser]'
	touch $@

clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .ruff_cache
