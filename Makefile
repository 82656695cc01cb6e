# Needs python3 (3.11 or newer) and make. Everything else is set up in .venv by the first target
# that needs it, and again only after pyproject.toml or constraints.txt changed.

PYTHON ?= python3

VENV := .venv
RUN := $(VENV)/bin/python -m
PIP := $(RUN) pip --disable-pip-version-check --quiet
LISTS := pyproject.toml constraints.txt
SITE := $(VENV)/bin/python docs/_site.py

# Stamps: each says that a step of the set-up is done.
MADE := $(VENV)/.made
DEMO := $(VENV)/.installed-demo
DEV := $(VENV)/.installed-dev
BENCH := $(VENV)/.installed-bench

# What some tests run. Where one cannot be had they are skipped, and say so.
PROGRAMS := nginx chromium curl git wget rclone redis-server skopeo docker-registry litmus go

# Applications that slow tests put behind the proxy, each in a virtual environment of its own.
APPS := $(basename $(notdir $(wildcard tests/real_clients/apps/requirements/*.txt)))

# pyright: take the Node.js that was installed with it, and do not ask for newer versions.
export PYRIGHT_PYTHON_GLOBAL_NODE := 0
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

# The tests start hundreds of processes, which must not compile the package anew each time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo apps test test-unit test-parallel test-serial test-flavor test-httpx2 test-all test-stability matrix check serve bench fuzz soak soak-all clean $(PROGRAMS) docs docs-serve

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s  %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(DEMO) ## show what the library does, on real input, in half a minute
	@$(RUN) examples.demo

test-unit: $(DEV) ## run the tests that need no process: half a minute
	@EXAMPLES=0.3 $(PARALLEL) -q -n 4 -m "not serial and not slow and not process and not exhaustive" tests/unit

test: ## run the tests, in groups: five minutes
	@$(MAKE) -s test-parallel
	@$(MAKE) -s test-serial
	@$(MAKE) -s test-flavor

# The tests with this marker need real time or the whole machine: one at a time.
SERIAL_FILES = $(shell grep -rl --include='test_*.py' mark.serial tests)
PARALLEL := $(RUN) pytest -n 6 --dist worksteal

test-parallel: $(DEV) $(filter-out go,$(PROGRAMS))
	@$(PARALLEL) -m "not serial and not slow"

test-serial: $(DEV) $(filter-out go,$(PROGRAMS))
	@$(RUN) pytest -m "serial and not slow" $(SERIAL_FILES)

# Of the tests that run on httpx2 too, those that tell most in least time; and all of them.
TELLING := $(wildcard $(addprefix tests/unit/test_,corners.py errors.py lifespan.py responses*.py))

test-flavor: $(DEV)
	@TESTED_LIBRARY=httpx2 $(PARALLEL) -q $(TELLING)

test-httpx2: $(DEV) ## run the tests on httpx2
	@TESTED_LIBRARY=httpx2 $(PARALLEL) -m "not serial" tests/unit tests/integration

test-all: $(DEV) $(PROGRAMS) apps ## run all tests, also the slow ones, on all servers: half an hour
	@EXAMPLES=10 LARGE_BODY_GB=0.5 $(PARALLEL) --servers=all -m "not serial"
	@$(RUN) pytest --servers=all -m serial $(SERIAL_FILES)
	@$(MAKE) -s test-httpx2

apps: $(APPS:%=$(VENV)/apps/%/.installed) ## install Jupyter, Django and others, which test-all runs

test-stability: $(DEV) ## run the tests RUNS=20 times, LOAD=1 on a busy machine; count failures
	@$(RUN) tests.support.stability --runs $(or $(RUNS),20) $(if $(LOAD),--load)

matrix: $(DEV) ## test each Python, the lowest and newest dependencies, each extra: half an hour
	@$(RUN) nox -f tests/noxfile.py

check: $(DEV) ## check format, lint, types and docs
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) mypy --platform win32 --cache-dir .mypy_cache/win32 src examples
	$(RUN) mypy --platform darwin --cache-dir .mypy_cache/darwin src examples
	$(RUN) pyright
	$(SITE) build
	$(RUN) pytest -q tests/docs/test_pages.py

docs: $(DEV) ## build the site of the docs, into site/
	@$(SITE) build

docs-serve: $(DEV) ## show it, and build it again after each change: http://127.0.0.1:8080
	@$(SITE) serve

serve: $(DEMO) ## keep the demo's upstream and app running, with curl lines to try
	@$(RUN) examples.demo --serve

bench: $(BENCH) nginx ## measure the relay against its peers, into docs/performance.md: 35 minutes
	@$(RUN) tests.benchmarks

fuzz: $(DEV) ## look for what breaks the transport: ten minutes, or make fuzz MINUTES=n
	@$(RUN) tests.fuzz.fuzz --minutes $(or $(MINUTES),10)

SOAK := $(RUN) tests.soak --minutes $(or $(MINUTES),1) $(if $(SEED),--seed $(SEED)) \
    $(if $(CALLERS),--callers $(CALLERS)) $(if $(PLOT),--plot $(PLOT))

soak: $(BENCH) ## mixed traffic through a server: MINUTES=10 SERVER=granian TRANSPORT=stock FAULTS=1
	@$(SOAK) --server $(or $(SERVER),uvicorn-httptools) --transport $(or $(TRANSPORT),asyncio) \
	    $(if $(FAULTS),--faults)

soak-all: $(BENCH) ## the same with faults on every server and both transports, a minute each
	@$(SOAK) --all --faults

clean: ## remove the virtual environment and what tools left behind
	rm -rf $(VENV) .nox .mypy_cache .pytest_cache .ruff_cache .hypothesis dist site .site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "This needs Python 3.11 or newer, and '$(PYTHON)' is not; try: make PYTHON=python3.12" >&2; \
	    exit 1; \
	}
	@echo "making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { \
	    echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu it is the package python3-venv" >&2; \
	    exit 1; \
	}
	@$(PIP) install 'pip>=25.1' # the first that knows dependency groups
	@touch $@

$(DEMO): $(MADE) $(LISTS)
	@echo "installing the package and what the demo needs"
	@$(PIP) install -c constraints.txt -e . fastapi uvicorn
	@touch $@

$(DEV): $(DEMO)
	@echo "installing what the tests and checks need"
	@$(PIP) install -c constraints.txt -e . --group dev
	@touch $@

$(BENCH): $(DEV)
	@echo "installing the peers that the benchmark compares with"
	@$(PIP) install -c constraints.txt --group bench
	@touch $@

$(VENV)/apps/%/.installed: tests/real_clients/apps/requirements/%.txt | $(MADE)
	@echo "installing $* into $(VENV)/apps/$*"
	@$(PYTHON) -m venv $(VENV)/apps/$*
	@if $(VENV)/apps/$*/bin/python -m pip install --quiet -r $< >$(VENV)/apps/$*.log 2>&1; then touch $@; \
	else echo "$* could not be installed ($(VENV)/apps/$*.log says why); its tests are skipped"; \
	    rm -rf $(VENV)/apps/$*; fi

$(PROGRAMS): | $(MADE)
	@PATH="$$PATH:/usr/sbin"; command -v $@ >/dev/null || test -e $(VENV)/.$@-tried \
	    || $(MAKE) -s $(VENV)/.$@-tried

# The packages to try, the best first.
$(VENV)/.%-tried: PACKAGES = $*
$(VENV)/.nginx-tried: PACKAGES = nginx-light nginx
$(VENV)/.go-tried: PACKAGES = golang-go

$(PROGRAMS:%=$(VENV)/.%-tried): $(VENV)/.%-tried: | $(MADE)
	@touch $@
	@command -v apt-get >/dev/null || exit 0; \
	if [ "$$(id -u)" = 0 ]; then as_root=; \
	elif sudo -n true 2>/dev/null; then as_root="sudo -n"; \
	else exit 0; fi; \
	echo "installing $*, which some tests run"; \
	apt() { timeout 300 $$as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y "$$@"; }; \
	first() { for package in $(PACKAGES); do apt install $$package && return; done; return 1; }; \
	{ first || { apt update && first; }; } \
	    >$(VENV)/$*.log 2>&1 </dev/null \
	    || echo "$* could not be installed ($(VENV)/$*.log says why); its tests are skipped"
