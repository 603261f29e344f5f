# Every target is one frostgrid command; make prints it as it runs.
PYTHON ?= python3
STUDY ?= studies/puma.toml
ENCODER ?=
SEEDS ?=
CACHE ?=
WORKERS ?=
ONLY ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OPTIONS = $(if $(CACHE),--cache $(CACHE))
CREW = $(if $(WORKERS),--workers $(WORKERS))
ENCODERS = $(if $(ENCODER),--encoder $(ENCODER))

.PHONY: setup demo test test-all lint bench extract train report lock

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(STAMP)
	$(BIN)/frostgrid run studies/demo.toml $(OPTIONS) $(CREW)

extract: $(STAMP)
	$(BIN)/frostgrid extract $(STUDY) $(ENCODERS) $(OPTIONS) $(CREW)

train: $(STAMP)
	$(BIN)/frostgrid train $(STUDY) $(ENCODERS) $(if $(SEEDS),--seeds $(SEEDS)) $(OPTIONS) $(CREW)

report: $(STAMP)
	$(BIN)/frostgrid report $(STUDY) $(OPTIONS)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered --cov-fail-under=85

test-all: $(STAMP)
	$(BIN)/python -m pytest -m "slow or not slow"

bench: $(STAMP)
	$(BIN)/python -m bench.run $(if $(ONLY),--only $(ONLY))

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Resolve pyproject.toml afresh into requirements.lock; the CUDA wheels exist for Linux on x86-64 only.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check "setuptools>=77" ".[dev]"
	build/lock/bin/python -m pip freeze --all --exclude frostgrid --exclude pip \
	  | sed -E '/^(nvidia-|cuda-|triton)/ s/$$/ ; sys_platform == "linux" and platform_machine == "x86_64"/' \
	  > requirements.lock
	rm -rf build/lock
