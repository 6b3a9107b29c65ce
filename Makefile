PYTHON ?= python3
BIN := .venv/bin
EXTRAS ?= dev
PROCESSES ?= 2
FUZZ_SECONDS ?= 1800
TORTURE_KILLS ?= 50

.PHONY: demo test lint bench torture fuzz docs clean

demo: .venv/installed
	$(BIN)/python -m tljax.main $(ARGS)

test: .venv/installed
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal $(ARGS)

# Beside PyTorch; 33 minutes on 2 quiet cores.
bench: .venv/peer
	$(BIN)/python benchmarks/run.py $(ARGS)

# Kills runs at random moments and compares their ends; about 14 minutes for the 50 kills of default.
torture: .venv/installed
	TORTURE_KILLS=$(TORTURE_KILLS) $(BIN)/python -m tests.torture $(ARGS)

# Hostile weights: mutates them for FUZZ_SECONDS and says what was lost; Linux only.
fuzz: .venv/fuzz
	$(BIN)/python -m tests.fuzz.run $(FUZZ_SECONDS)

# The site, in build/site; a warning is an error.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo "tljax needs Python 3.11 to 3.13: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

# torchvision's compiled operators do not load beside a torch without CUDA; nothing here needs them.
.venv/peer: .venv/installed
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --no-deps torchvision==0.28.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS),ray,mlflow,wandb]'
	touch $@

.venv/fuzz: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt atheris
	touch $@

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS),docs]'
	touch $@

# Its tests start the system's Chromium (apt-get install chromium), or that of TLJAX_CHROMIUM.
.venv/browser: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS),browser]'
	touch $@

clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .ruff_cache
