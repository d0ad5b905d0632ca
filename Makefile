# make demo | make test | make lint: each makes .venv from the lock on first use and reuses it.
# make test-newest | make test-lowest: the suite with the newest and the lowest versions allowed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOCK := requirements/dev.lock
HELD := requirements/held.txt
UV := .venv-uv/bin/uv
PIP := -m pip install --quiet --disable-pip-version-check
PYTEST := -m pytest -n auto --dist loadfile

.PHONY: demo test lint format lock test-locked test-newest test-lowest clean

demo: $(READY)
	$(BIN)/python -m steer.cli.demo --out demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	PYTHONPATH=. $(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Exactly what the lock names, made anew when it changes; then steer itself, from this folder.
$(VENV)/.locked: $(LOCK)
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --require-hashes -r $(LOCK)
	touch $@

$(READY): $(VENV)/.locked pyproject.toml
	$(BIN)/python $(PIP) --no-deps --no-build-isolation -e .
	touch $@

lock: $(UV)
	$(UV) pip compile pyproject.toml --extra dev --constraint $(HELD) --output-file $(LOCK) \
	  --universal --python-version 3.11 --generate-hashes --upgrade --no-emit-index-url \
	  --custom-compile-command "make lock"

# Each runs the suite and writes down how it went: benchmarks/results/environments.json.
test-locked: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/environments.py locked $(PYTEST)

test-newest test-lowest: test-%: .venv-%/.ready
	OMP_NUM_THREADS=1 .venv-$*/bin/python benchmarks/environments.py $* $(PYTEST)

.venv-newest/.ready: RESOLUTION := highest
.venv-lowest/.ready: RESOLUTION := lowest-direct
.venv-newest/.ready .venv-lowest/.ready: .venv-%/.ready: pyproject.toml $(UV)
	rm -rf .venv-$*
	$(PYTHON) -m venv .venv-$*
	$(UV) pip install --quiet --python .venv-$*/bin/python --resolution $(RESOLUTION) --upgrade \
	  -e ".[dev]"
	touch $@

$(UV):
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python $(PIP) uv

clean:
	rm -rf $(VENV) .venv-newest .venv-lowest .venv-uv build *.egg-info demo
