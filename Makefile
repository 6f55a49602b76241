# Commands for developers and newcomers; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 4
NATIVE := $(VENV)/.datapath
CRATE := $(shell find datapath -name target -prune -o -name fuzz -prune -o \
  -name '*.rs' -print -o -name '*.toml' -print -o -name '*.lock' -print -o -name '*.pyi' -print)

.PHONY: help
help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

$(STAMP): pyproject.toml requirements.lock tools/bootstrap.sh
	@tools/bootstrap.sh "$(PYTHON)" "$(VENV)"
	@touch $@

# Where it cannot be built, this says so each time and the rest goes on without it.
$(NATIVE): $(STAMP) tools/datapath.sh tools/packages/crates.py $(CRATE)
	@tools/datapath.sh install "$(VENV)" && touch $@ || [ $$? = 77 ]

.PHONY: datapath
datapath: $(NATIVE)  ## the native datapath into it, where there is a Rust compiler
	@:

.PHONY: venv
venv: $(STAMP) datapath  ## a virtual environment with everything that development needs
	@:

.PHONY: demo
demo:  ## a gateway, an internet and a client on this machine, and a tunnel between them
	@[ "$$(id -u)" = 0 ] || { echo "make demo needs root for network namespaces: run it with sudo" >&2; exit 1; }
	@$(MAKE) --no-print-directory venv
	@$(BIN)/python -m tests.demo

.PHONY: install-helper
install-helper: $(STAMP)  ## as root: this checkout's helper to where pkexec may start it
	@$(BIN)/qvpn-install-helper

.PHONY: test
test: $(STAMP) datapath  ## every test that this machine can run; says what it skipped and why
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --max-worker-restart 0 tests

.PHONY: lint
lint: $(STAMP)  ## style, types, and the arrows between packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@tools/datapath.sh lint || [ $$? = 77 ]

.PHONY: fuzz
fuzz: $(STAMP)  ## random and broken input into every parser, for FUZZ_SECONDS each
	QVPN_FUZZ_SECONDS=$(or $(FUZZ_SECONDS),60) $(BIN)/python -m pytest tests/fuzz

.PHONY: bench
bench: $(STAMP) datapath  ## this VPN beside others and beside no VPN, in one run; needs root
	$(BIN)/python -m bench
	$(BIN)/python -m bench.devices
	$(BIN)/python -m bench.bottleneck
	$(BIN)/python -m bench.streams
	-$(BIN)/python -m bench.app

.PHONY: lock
lock: $(STAMP)  ## write requirements.lock anew from pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv pip compile -q pyproject.toml --extra dev --extra gui --extra fast --extra server \
	  --extra postgresql --extra package --universal \
	  --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --upgrade -o requirements.lock

# For the packages: where it cannot be built, they are made of what is there.
.PHONY: native-wheel
native-wheel: $(STAMP)
	@tools/datapath.sh wheel "$(VENV)" || [ $$? = 77 ]

.PHONY: deb
deb: native-wheel  ## dist/*.deb: the client and the gateway, with a Python of their own
	$(BIN)/python -m tools.packages.build deb

.PHONY: rpm
rpm: native-wheel  ## dist/*.rpm: the same
	$(BIN)/python -m tools.packages.build rpm

.PHONY: wheels
wheels: $(STAMP)  ## dist/*.whl and the source archive
	SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct)} $(BIN)/python -m hatchling build -d dist
	@$(BIN)/python -c 'from tools.packages import build; build.write_checksums(build.PROJECT / "dist")'

.PHONY: datapath-wheel
datapath-wheel: $(STAMP)  ## dist/qvpn_datapath-*.whl: the native datapath
	tools/datapath.sh wheel "$(VENV)"
	@$(BIN)/python -c 'from tools.packages import build; build.write_checksums(build.PROJECT / "dist")'

.PHONY: translations
translations: $(STAMP)  ## the texts of the app for translators, and what they made of them
	$(BIN)/python -m tools.translate

.PHONY: clean
clean:  ## remove the virtual environment and everything built
	rm -rf $(VENV) build dist datapath/target
