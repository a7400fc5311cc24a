# One command per wish, the same on a laptop and in CI.
# Nothing here needs root; where a system package is missing and we are root, scripts/tools installs it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# A scrubbed PATH still finds the toolchain; what scripts/tools installs is found last.
export PATH := $(PATH)$(CARGO_HOME:%=:%/bin)$(HOME:%=:%/.cargo/bin):/usr/local/cargo/bin:$(CURDIR)/.tools/bin

# CI sets LOCKED=--locked: there the lock file must already be right.
LOCKED ?=
# Arguments for `make demo` and `make dev`.
ARGS ?=

# Errors of tests tell their causes; where an anyhow error was made helps nobody.
export RUST_LIB_BACKTRACE ?= 0

BUILT := $(or $(CARGO_TARGET_DIR),target)/release
PROGRAMS := -p dormouse-coordinator -p dormouse-persist-server -p dormouse-cli

.PHONY: help tools check test demo dev bench soak clean

help: ## Show what can be made
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

tools: ## Install what is missing (nats-server, an S3 server, cargo-nextest) into .tools
	@scripts/tools nats-server s3-server cargo-nextest

check: ## Format, lints, documentation, import rules, words; warnings are errors
	@scripts/tools lints
	cargo fmt --all --check
	cargo clippy$(LOCKED:%= %) --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc$(LOCKED:%= %) --workspace --no-deps
	scripts/check-imports --self-test
	scripts/check-imports
	scripts/check-words --self-test
	scripts/check-words

# The end-to-end tests start the programs, so these are built first; nextest's summary stands last.
test: tools ## Unit, property, contract, documentation and end-to-end tests
	cargo build$(LOCKED:%= %) --workspace --all-targets
	cargo test$(LOCKED:%= %) --workspace --doc --quiet
	@if cargo nextest --version >/dev/null 2>&1; then \
	    set -x; cargo nextest run $(LOCKED) --workspace; \
	else \
	    set -x; cargo test$(LOCKED:%= %) --workspace --all-targets --no-fail-fast; \
	fi

demo: ## The main job on this machine's own data, with a server killed half way
	@scripts/tools nats-server
	cargo build$(LOCKED:%= %) --release $(PROGRAMS) -p dormouse-demo
	@$(BUILT)/dormouse-demo $(ARGS)

dev: ## A whole local fleet until Ctrl-C (ARGS="--servers 3 --port 4222")
	@scripts/tools nats-server
	cargo build$(LOCKED:%= %) --release $(PROGRAMS)
	@$(BUILT)/dormouse dev $(ARGS)

bench: ## (to come) Throughput and latency beside peers
	@echo "make bench will measure set, get, get_all, watch, wake-up and idle cost, and the same at peers"
	@echo "(core-NATS echo, JetStream, Redis); benches/README.md says how. There is nothing to measure yet."

# How many rounds of killing `make soak` plays, at two to three seconds each.
KILL_ROUNDS ?= 3000

soak: tools ## Larger bounds of the model, the bucket on Azure's protocol, hours of kill -9 and lost disks (KILL_ROUNDS=3000)
	@scripts/tools azurite
	cargo test$(LOCKED:%= %) -p dormouse-storage --test bucket_contract -- --ignored azure
	cargo test$(LOCKED:%= %) -p dormouse-model --test soak -- --ignored --nocapture --test-threads 2
	cargo build$(LOCKED:%= %) --workspace --all-targets
	DORMOUSE_KILL_ROUNDS=$(KILL_ROUNDS) cargo test$(LOCKED:%= %) --workspace --test kill9 -- --nocapture
	@echo "partitions and a bucket that comes and goes are still to come."

clean: ## Remove what was built (installed tools stay)
	cargo clean --quiet
