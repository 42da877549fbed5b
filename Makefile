# Everything works from a fresh clone: what a target needs is made first, in .venv.
#
#   make demo       register the shipped brains, print the Dice table and the report's path
#   make test       the quick tests          make test-slow  the long ones
#   make test-container  the image, built and run (root on Debian)
#   make test-all   all of them              make lint       style, types, who may import whom
#   make slurm      installs SLURM for some of the long tests, as root with apt
#   make env        the environment only     make clean      remove what the others made
#
# Where the default torch would bring gigabytes of CUDA, hand pip a CPU index or a wheel folder:
#
#   make demo PIP_ARGS='--extra-index-url CPU_INDEX'
#   make demo PIP_ARGS='--no-index --find-links /path/to/wheels'

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
WORKERS ?= 2
DEMO_OUTPUT ?= demo_output

BIN := $(VENV)/bin
ANTS := $(VENV)/ants
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)
PYTEST := OMP_NUM_THREADS=1 NO_ET=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n $(WORKERS)
REQUIREMENTS := setup.cfg pyproject.toml constraints.txt

# The packages of the environment are used, not what a shell's PYTHONPATH points to.
unexport PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE := 1

.PHONY: help env demo test test-slow test-container test-all container-tools slurm lint format constraints clean
.DEFAULT_GOAL := help

help:
	@sed -n '3,13s/^# \{0,1\}//p' Makefile

env: $(VENV)/.installed
	@echo "Ready. '. $(BIN)/activate' puts nephi-pipe and nephi on the path."

demo: $(VENV)/.installed
	@$(BIN)/python -m nephi_pipe.demo $(DEMO_OUTPUT)

test: $(VENV)/.installed-test
	@$(PYTEST) -m 'not slow'

test-slow: $(VENV)/.installed-test $(ANTS)/.installed slurm
	@NEPHI_ANTS_PYTHON=$(abspath $(ANTS))/bin/python $(PYTEST) -m 'slow and not container'

# What is missing on this machine is told by the tests, which are then skipped.
test-container: $(VENV)/.installed-test container-tools
	@$(PYTEST) -n 0 -m container

container-tools:
	@{ command -v buildah && command -v debootstrap && command -v bwrap; } > /dev/null \
		|| { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null \
			&& apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install \
				--no-install-recommends -y buildah debootstrap bubblewrap > /dev/null; } \
		|| echo 'buildah, debootstrap and bubblewrap could not be installed with apt.' >&2

# Some of the long tests run on a real SLURM. Where none can be installed they say so and are
# skipped: this never fails.
slurm: $(VENV)/.made
	@PATH="$$PATH:/usr/sbin"; \
	if command -v slurmctld > /dev/null && command -v munged > /dev/null; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then \
		echo 'There is no SLURM, and it is installed only by root and apt: its tests are skipped.'; \
		exit 0; \
	fi; \
	echo 'Installing SLURM, which some of the long tests run on.'; \
	{ timeout 120 apt-get update && DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install \
		--yes --no-install-recommends -o DPkg::Lock::Timeout=60 slurm-wlm munge; } \
		> $(VENV)/slurm.log 2>&1 \
		|| echo 'It cannot be installed ($(VENV)/slurm.log says why): its tests are skipped.'

test-all: test
	@$(MAKE) --no-print-directory test-slow
	@$(MAKE) --no-print-directory test-container

# Import contracts are read from folders, and an editable install has none for the two outer
# rooms: they are checked on an installed copy.
lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(VENV)/copy build
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps \
		--no-build-isolation --target $(VENV)/copy .
	rm -rf build
	cd $(VENV)/copy && PYTHONPATH=. $(abspath $(BIN))/lint-imports --no-cache \
		--config $(CURDIR)/pyproject.toml
	cd $(VENV)/copy && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml nephi_pipe

format: $(VENV)/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One set of versions for every supported Python, by markers. CUDA's libraries are left to torch,
# which names the exact ones it needs.
constraints: $(VENV)/.made
	$(BIN)/python -m pip install --disable-pip-version-check --quiet uv
	echo 'torch==2.13.0' | $(BIN)/uv pip compile setup.cfg --all-extras --universal \
		--python-version 3.10 --no-annotate --no-header --no-emit-index-url --quiet --upgrade \
		--constraints - --output-file $(VENV)/constraints.txt
	{ sed -n '/^#/p' constraints.txt; \
		grep -v -E '^(nvidia|cuda|triton|setuptools|pip)\b' $(VENV)/constraints.txt; } \
		> $(VENV)/constraints.new
	mv $(VENV)/constraints.new constraints.txt

clean:
	rm -rf $(VENV) $(DEMO_OUTPUT) $(DEMO_OUTPUT)_work build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache \
		.hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2> /dev/null || { \
		echo "Python 3.10 to 3.13 is needed, and '$(PYTHON)' is" \
			"$$($(PYTHON) --version 2> /dev/null || echo missing)." \
			"Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { \
		echo "$(PYTHON) cannot make an environment. On Debian and Ubuntu install the package" \
			"python3-venv; elsewhere check the message above and the space on the disk." >&2; \
		exit 1; }
	@touch $@

$(VENV)/.installed: $(VENV)/.made $(REQUIREMENTS)
	@echo 'Installing nephi_pipe and what it needs into $(VENV): a few minutes the first time.'
	@$(PIP) --quiet --constraint constraints.txt --editable .
	@touch $@

# digital-diffeomorphism asks for an old nibabel, which what we take from it does not use.
$(VENV)/.installed-test: $(VENV)/.installed
	@echo 'Installing what the tests need into $(VENV).'
	@$(PIP) --quiet --constraint constraints.txt --editable '.[test,brainmask,train]'
	@$(PIP) --quiet --no-deps digital-diffeomorphism==1.1.1
	@touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	@echo 'Installing ruff, mypy and import-linter into $(VENV).'
	@$(PIP) --quiet --constraint constraints.txt --editable '.[lint]' 'setuptools>=64'
	@touch $@

# antspyx caps numpy below what the environment has: it reads our files in one of its own.
$(ANTS)/.installed: $(VENV)/.made
	@echo 'Installing antspyx, which reads our transforms in a test, into $(ANTS).'
	@$(BIN)/python -m venv --clear $(ANTS)
	@$(ANTS)/bin/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) antspyx
	@touch $@
