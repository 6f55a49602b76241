# Commands for developers and newcomers; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 4
CARGO := $(shell command -v cargo || ls $(HOME)/.cargo/bin/cargo 2>/dev/null)

.PHONY: help
help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

$(STAMP): pyproject.toml requirements.lock tools/bootstrap.sh
	@tools/bootstrap.sh "$(PYTHON)" "$(VENV)"
	@touch $@

.PHONY: venv
venv: $(STAMP)  ## a virtual environment with everything that development needs
	@:

# The native datapath is optional: with a Rust toolchain it is built, without one it is left out.
NATIVE := $(VENV)/.native
$(NATIVE): $(STAMP) tools/native.sh datapath/Cargo.toml datapath/Cargo.lock $(wildcard datapath/src/*.rs)
	@: > $@
	@if [ -n "$(CARGO)" ]; then \
	  echo "building the native datapath"; \
	  if tools/native.sh "$(VENV)"; then echo built > $@; \
	  else echo "going on without the native datapath"; fi; \
	fi

.PHONY: native
native: $(STAMP)  ## the native datapath; needs a Rust toolchain and a C compiler
	@tools/native.sh "$(VENV)"
	@echo built > $(NATIVE)

.PHONY: demo
demo:  ## a gateway, an internet and a client on this machine, and a tunnel between them
	@[ "$$(id -u)" = 0 ] || { echo "make demo needs root for network namespaces: run it with sudo" >&2; exit 1; }
	@$(MAKE) --no-print-directory venv $(NATIVE)
	@$(BIN)/python -m tests.demo

.PHONY: test
test: $(NATIVE)  ## every test that this machine can run; says what it skipped and why
	@if [ -s $(NATIVE) ]; then $(CARGO) test --quiet --locked --manifest-path datapath/Cargo.toml; fi
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile tests

.PHONY: lint
lint: $(STAMP)  ## style, types, and the arrows between packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if [ -n "$(CARGO)" ] && $(CARGO) clippy --version >/dev/null 2>&1; then \
	  $(MAKE) --no-print-directory lint-native; fi

.PHONY: lint-native
lint-native:  ## style and lints of the native datapath; licences and advisories with cargo-deny
	$(CARGO) fmt --check --manifest-path datapath/Cargo.toml
	$(CARGO) clippy --quiet --locked --all-targets --features python --manifest-path datapath/Cargo.toml -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
	  $(CARGO) deny --manifest-path datapath/Cargo.toml check licenses bans sources; fi

.PHONY: fuzz
fuzz: $(NATIVE)  ## random and broken input into every parser, for FUZZ_SECONDS each
	QVPN_FUZZ_SECONDS=$(or $(FUZZ_SECONDS),60) $(BIN)/python -m pytest tests/fuzz
	@if [ -s $(NATIVE) ]; then \
	  PROPTEST_CASES=$$(( $(or $(FUZZ_SECONDS),60) * 1000 )) \
	  $(CARGO) test --quiet --locked --manifest-path datapath/Cargo.toml; fi

.PHONY: bench
bench: $(NATIVE)  ## this VPN beside others and beside no VPN, in one run; needs root
	$(BIN)/python -m bench

.PHONY: lock
lock: $(STAMP)  ## write requirements.lock anew from pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv pip compile -q pyproject.toml --extra dev --extra fast --extra server --extra postgresql --universal \
	  --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --upgrade -o requirements.lock

.PHONY: clean
clean:  ## remove the virtual environment and everything built
	rm -rf $(VENV) build dist datapath/target
