# What there is to do with geventws. Needed: make and Python 3.10 or later; a C compiler makes it faster.
#
#   make demo        serve the example page (compiled where that is possible)
#   make test        the whole test suite on the installed package (compiled where that is possible)
#   make test-plain  the same on the plain Python build
#   make check       lint, types, docs, test, test-plain and coverage
#   make autobahn    the Autobahn cases against the server and the client; see tests/autobahn/README.md
#   make bench       measure geventws and its peers side by side; see benchmarks/README.md
#   make fuzz        change the inputs of tests/fuzz at random (its README.md says more)
#   make guard       count a message's instructions and system calls, and compare them with benchmarks/guard.json
#   make help        all the targets
#
# PYTHON=python3.12 chooses the interpreter, TESTS="tests/test_server.py -x" what pytest gets,
# GEVENTWS_BUILD=compiled makes a build that cannot compile an error.

PYTHON ?= python3
TESTS ?= tests
# Percent of branches and lines that the plain build's tests must reach: of everything, and of the modules without I/O.
COVERAGE ?= 95
CORE_COVERAGE ?= 100

# What `make fuzz` runs, how often and on which build; SEED=1 makes it repeatable, SECONDS=60 ends it.
TARGET ?= all
RUNS ?= $(if $(SECONDS),,100000)
BUILD ?= compiled

CORE = errors masking memory frames headers cookies proxies inbox deflate handshake protocol prepared trace head

# Which servers `make bench` compares, in which scenarios (names or patterns between commas, all of them by default), in
# how many rounds; SECONDS=1 is the length of a run.
SERVERS ?=
SCENARIOS ?=
ROUNDS ?= 5

VENV = .venv
# The tools read and measure Python, so they work on a plain build.
PLAIN = .venv-plain
# The compiled build in which every access to memory is checked.
ASAN = .venv-asan
# The peers beside the compiled build, and the plain one with the same gevent.
PEERS = .venv-bench
PEERS_PLAIN = .venv-bench-plain

PIP_INSTALL = -m pip install --quiet --quiet --disable-pip-version-check
# The folders stand here too: they change when a file is removed.
SOURCES := pyproject.toml setup.py MANIFEST.in LICENSE $(wildcard README.md) $(shell find geventws -not -name '*.pyc' -not -name __pycache__ \
	-not -name '*.so')
PACKAGES := geventws $(wildcard examples benchmarks)
# -I: not what lies in this folder.
TELL_BUILD = -I -c 'import geventws; print("geventws", geventws.__version__, "is installed:", \
	"compiled" if geventws.COMPILED else "plain Python (GEVENTWS_BUILD=compiled make ... tells why it is not compiled)")'
TELL_PLAIN_BUILD = -I -c 'import geventws; print("geventws", geventws.__version__, "is installed: plain Python"); \
	assert not geventws.COMPILED'

# Where the tools of the benchmarks are built.
BENCH = build/bench

# Two builds in one folder at once would disturb each other.
.NOTPARALLEL:
.PHONY: help demo test test-plain test-core check lint format types docs coverage clean
.PHONY: autobahn autobahn-server autobahn-client fuzz fuzz-guided asan guard guard-update bench

help:
	@echo "make demo | test | test-plain | test-core | check | lint | format | types | docs | coverage | clean"
	@echo "make autobahn | autobahn-server | autobahn-client | fuzz | fuzz-guided | asan"
	@echo "make guard | guard-update | bench"

demo: $(VENV)/.installed
	@$(VENV)/bin/geventws demo

test: $(VENV)/.test
	$(VENV)/bin/pytest -rs $(TESTS)

test-plain: $(PLAIN)/.tools
	$(PLAIN)/bin/pytest -rs $(TESTS)

# The tests of the modules without I/O, which need little: quick, and for trying another Python.
test-core: $(PLAIN)/.core
	$(PLAIN)/bin/pytest -rs $(wildcard $(CORE:%=tests/test_%.py))

check: lint types docs test test-plain coverage

lint: $(PLAIN)/.tools
	$(PLAIN)/bin/ruff check .
	$(PLAIN)/bin/ruff format --check .

format: $(PLAIN)/.tools
	$(PLAIN)/bin/ruff check --fix .
	$(PLAIN)/bin/ruff format .

types: $(PLAIN)/.tools
	$(PLAIN)/bin/mypy $(PACKAGES) setup.py

docs: $(PLAIN)/.tools
	$(PLAIN)/bin/sphinx-build -W --keep-going -E -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

comma = ,
empty =
space = $(empty) $(empty)
# A server whose every line is traced is too slow for floods: time-outs strike before what is looked for is there.
FLOODS = tests/test_adversary.py::TestMemory tests/test_adversary.py::test_everything_at_once \
	tests/test_shutdown.py::test_sigterm_under_load
coverage: $(PLAIN)/.tools
	@$(PLAIN)/bin/coverage erase
	$(PLAIN)/bin/coverage run $(PLAIN)/bin/pytest -rs $(FLOODS:%=--deselect %) $(TESTS)
	@$(PLAIN)/bin/coverage combine --quiet
	@$(PLAIN)/bin/coverage report --fail-under=$(COVERAGE)
	@$(PLAIN)/bin/coverage report --fail-under=$(CORE_COVERAGE) \
		--include='$(subst $(space),$(comma),$(CORE:%=geventws/%.py))'

# Which cases, with which engine, of which build, in which style, and whether its compressors keep their windows.
CASES ?= quick
EXCLUDE ?=
ENGINE ?= auto
STYLE ?= event
DEFLATE ?= fresh
AUTOBAHN_TIMEOUT ?= 3600

AUTOBAHN = .autobahn
BUILT_compiled = $(VENV)/.installed
BUILT_plain = $(PLAIN)/.core
BUILT := $(or $(BUILT_$(BUILD)),$(error BUILD must be compiled or plain, not "$(BUILD)"))

autobahn: autobahn-server autobahn-client

autobahn-server autobahn-client: autobahn-%: $(AUTOBAHN)/.installed $(BUILT)
	@$(PYTHON) tests/autobahn/run.py $* --cases '$(CASES)' --exclude '$(EXCLUDE)' --engine '$(ENGINE)' \
		--home $(AUTOBAHN) --reports $(AUTOBAHN)/reports/$*-$(BUILD)-$(STYLE)-$(DEFLATE) --timeout $(AUTOBAHN_TIMEOUT) -- \
		$(dir $(BUILT))bin/python tests/autobahn/testee.py --build $(BUILD) --style $(STYLE) --deflate $(DEFLATE) $*

bench: $(PEERS)/.installed $(PEERS_PLAIN)/.installed benchmarks/node_modules/.installed build/bench/load build/bench/echo
	$(PEERS)/bin/python -m benchmarks.run --plain $(CURDIR)/$(PEERS_PLAIN)/bin/python --servers '$(SERVERS)' \
		--scenarios '$(SCENARIOS)' --rounds $(ROUNDS) $(if $(SECONDS),--seconds $(SECONDS))

FUZZ_OPTIONS = $(TARGET) --build $(BUILD) $(if $(RUNS),--runs $(RUNS)) $(if $(SEED),--seed $(SEED)) \
	$(if $(SECONDS),--seconds $(SECONDS))
ifeq ($(BUILD),plain)
FUZZED = $(PLAIN)
fuzz: $(PLAIN)/.core
else
FUZZED = $(VENV)
fuzz: $(VENV)/.installed
endif
fuzz:
	cd tests && ../$(FUZZED)/bin/python -m fuzz $(FUZZ_OPTIONS)

# What it finds lies in build/fuzz, and the next `make fuzz` begins with it.
fuzz-guided: BUILD = plain
fuzz-guided: $(PLAIN)/.fuzz
	cd tests && ../$(PLAIN)/bin/python -m fuzz --guided $(FUZZ_OPTIONS)

# Fails when a message costs more than 10 % more instructions or system calls than is committed; benchmarks/guard.py
# says how they are counted.
guard: $(VENV)/.installed
	@$(VENV)/bin/python benchmarks/guard.py

guard-update: $(VENV)/.installed
	@$(VENV)/bin/python benchmarks/guard.py --update

# gevent moves the stacks of its greenlets, which the checks of stack variables take for a fault.
ASAN_CFLAGS = -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g --param=asan-stack=0
ASAN_RUN = env LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc
ASAN_TESTS ?= $(wildcard $(patsubst %,tests/test_%.py,$(CORE) fuzz sockets transport dispatch sending delivery))
# -s: a report goes to the standard error of a process that ends at once.
asan: $(ASAN)/.test
	@cd tests && ! $(ASAN_RUN) ../$(ASAN)/bin/python -c 'from geventws.masking import unmask; unmask(b"abc", 0, 4096, 1, 0)' \
		2>/dev/null || { echo "AddressSanitizer finds nothing where there is something"; exit 1; }
	$(ASAN_RUN) $(ASAN)/bin/pytest -s -q $(ASAN_TESTS)
	cd tests && $(ASAN_RUN) ../$(ASAN)/bin/python -m fuzz $(FUZZ_OPTIONS)

# The load generator and the floor of the benchmarks; Debian and Ubuntu have what they need in libssl-dev and zlib1g-dev.
$(BENCH)/load $(BENCH)/echo: $(BENCH)/%: benchmarks/%.c benchmarks/websocket.h
	@mkdir -p $(@D)
	$(CC) -O2 -march=native -Wall -Wextra -o $@ $< -lssl -lcrypto -lz -lm

clean:
	rm -rf .venv .venv-plain .venv-asan .venv-bench .venv-bench-plain .autobahn build dist geventws.egg-info docs/_build htmlcov \
		.mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* benchmarks/node_modules
	find geventws tests -name __pycache__ -prune -exec rm -rf {} +
	rm -f geventws/*.so

# One stamp for each set of what is installed; a larger set makes the smaller ones, too.

$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/python
	@echo "Building geventws (up to a minute)"
	@$(VENV)/bin/python $(PIP_INSTALL) .
	@$(VENV)/bin/python $(TELL_BUILD)
	@touch $@

$(VENV)/.test: $(SOURCES) | $(VENV)/bin/python
	@echo "Building geventws, and installing what its tests need"
	@$(VENV)/bin/python $(PIP_INSTALL) '.[test]'
	@$(VENV)/bin/python $(TELL_BUILD)
	@touch $(VENV)/.installed $@

$(PLAIN)/.core: $(SOURCES) | $(PLAIN)/bin/python
	@GEVENTWS_BUILD=plain $(PLAIN)/bin/python $(PIP_INSTALL) . pytest hypothesis
	@$(PLAIN)/bin/python $(TELL_PLAIN_BUILD)
	@touch $@

$(PLAIN)/.tools: $(SOURCES) | $(PLAIN)/bin/python
	@echo "Installing the plain build of geventws, and the tools"
	@GEVENTWS_BUILD=plain $(PLAIN)/bin/python $(PIP_INSTALL) '.[test,lint,docs]'
	@$(PLAIN)/bin/python $(TELL_PLAIN_BUILD)
	@touch $(PLAIN)/.core $@

$(AUTOBAHN)/.installed: tests/autobahn/install.sh
	@echo "Installing what runs the Autobahn cases (under a minute)"
	@PYTHON=$(PYTHON) tests/autobahn/install.sh $(AUTOBAHN)
	@touch $@

$(PLAIN)/.fuzz: $(SOURCES) | $(PLAIN)/bin/python
	@GEVENTWS_BUILD=plain $(PLAIN)/bin/python $(PIP_INSTALL) '.[fuzz]'
	@$(PLAIN)/bin/python $(TELL_PLAIN_BUILD)
	@touch $@

# In a folder of its own: another build would take its objects for its own.
$(ASAN)/.test: $(SOURCES) | $(ASAN)/bin/python
	@echo "Building geventws with the checks of AddressSanitizer (some minutes)"
	@rm -rf build/asan && mkdir -p build/asan
	@cp -R pyproject.toml setup.py MANIFEST.in LICENSE README.md geventws build/asan
	@GEVENTWS_BUILD=compiled CFLAGS="$(ASAN_CFLAGS)" LDFLAGS="-fsanitize=address,undefined" \
		$(ASAN)/bin/python $(PIP_INSTALL) ./build/asan pytest hypothesis
	@touch $@

# A peer that does not install here is left out, whatever else it takes along.
$(PEERS)/.installed: $(SOURCES) benchmarks/requirements.txt | $(PEERS)/bin/python
	@echo "Installing the peers that geventws is compared with (a few minutes)"
	@$(PEERS)/bin/python $(PIP_INSTALL) -r benchmarks/requirements.txt || \
		for each in $$(grep == benchmarks/requirements.txt); do \
			$(PEERS)/bin/python $(PIP_INSTALL) -c benchmarks/requirements.txt $$each || echo "Without $$each: it does not install here"; \
		done
	@$(PEERS)/bin/python $(PIP_INSTALL) -c benchmarks/requirements.txt .
	@$(PEERS)/bin/python $(TELL_BUILD)
	@touch $@

$(PEERS_PLAIN)/.installed: $(SOURCES) benchmarks/requirements.txt | $(PEERS_PLAIN)/bin/python
	@GEVENTWS_BUILD=plain $(PEERS_PLAIN)/bin/python $(PIP_INSTALL) -c benchmarks/requirements.txt .
	@$(PEERS_PLAIN)/bin/python $(TELL_PLAIN_BUILD)
	@touch $@

benchmarks/node_modules/.installed: benchmarks/package-lock.json
	@cd benchmarks && npm ci --silent --no-audit --no-fund || echo "Without the peers on Node.js: npm does not install them here"
	@mkdir -p $(@D) && touch $@

$(VENV)/bin/python $(PLAIN)/bin/python $(ASAN)/bin/python $(PEERS)/bin/python $(PEERS_PLAIN)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "geventws needs Python 3.10 or later; choose one with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv module; Debian and Ubuntu have it in the package python3-venv"; exit 1; }
	@rm -rf $(@D:/bin=)
	@$(PYTHON) -m venv $(@D:/bin=) || { rm -rf $(@D:/bin=); exit 1; }
