# make demo | make test | make test-fast | make lint: each makes .venv from the lock on first use and reuses it.
# make test-exhaustive: the whole of the tables of which make test runs a sample.
# make test-newest | make test-lowest: the suite with the newest and the lowest versions allowed.
# make gpu: what only an NVIDIA GPU can say. make release-check: what a release must pass.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOCK := requirements/dev.lock
HELD := requirements/held.txt
UV := .venv-uv/bin/uv
PIP := -m pip install --quiet --disable-pip-version-check
PYTEST := -m pytest -n auto --dist loadfile

.PHONY: demo docs test test-fast test-exhaustive campaign gpu release-check lint format lock \
  test-locked test-newest test-lowest clean

demo: $(READY)
	$(BIN)/python -m steer.cli.demo --out demo

# Quick files from every folder, for the inner loop; `make test` runs everything.
FAST := $(addprefix tests/unit/, core search rewards/thresholds rewards/test_registry.py \
  rewards/test_text.py rewards/test_inputs.py rewards/clip rewards/combine/test_compose.py \
  rewards/models/test_compressibility.py rewards/models/test_clip.py \
  driver/test_scheduler.py driver/test_caches.py driver/denoisers/test_blend_forms.py \
  driver/denoisers/checkpoints/test_sources.py \
  methods/selection/test_best_of_n.py methods/guidance/test_best_of_n.py \
  methods/noise/test_search.py methods/particles/test_tree_nodes.py pipeline/test_bad_input.py \
  pipeline/report/test_page.py jobs/compare/test_config.py jobs/compare/test_analysis.py \
  shapes/test_captions.py tune/test_objectives.py tune/test_config.py tune/data/test_config.py \
  tune/data/test_pairs.py tune/scorer/test_objective.py) tests/cli/test_cli.py

test-fast: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" $(FAST)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

# The rest of the tables of which `make test` runs a sample.
test-exhaustive: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m exhaustive

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	PYTHONPATH=. $(BIN)/lint-imports

# The site, in build/site; a dead link is an error (not with --quiet, which hides what strict counts).
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Kills, full disks, hostile files, fuzz, threads: under 20 minutes; the counts are settings, see
# tests/campaign/conftest.py.
campaign: $(READY)
	OMP_NUM_THREADS=1 STEER_CAMPAIGN_OUT=benchmarks/results/campaign.json \
	  $(BIN)/python -m pytest -m campaign tests/campaign

# Correctness of every kernel first, then what is owed in seconds: benchmarks/gpu.py.
gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu

# The files of a release in build/release, installed from nothing: tools/release_check.py.
release-check: docs $(UV)
	$(BIN)/python tools/release_check.py --uv $(UV)

# Exactly what the lock names, made anew when it changes; then steer itself, from this folder. By uv, which
# is faster, or by pip where uv cannot be had or sees another index.
$(VENV)/.locked: $(LOCK)
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(MAKE) --silent $(UV) && $(UV) pip install --quiet --compile-bytecode --python $(BIN)/python \
	  --require-hashes -r $(LOCK) || $(BIN)/python $(PIP) --require-hashes -r $(LOCK)
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
