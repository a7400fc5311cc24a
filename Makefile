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

# How many worlds `make soak` simulates, and from which seed on.
SEEDS ?= 20000
SEED_START ?= 0

# What `make soak-all` goes through beside that: rounds of kills (two to three seconds each) and of the nemesis (about fifteen), cases of each property, states of each of the model's bounds. With these
# it takes hours.
KILL_ROUNDS ?= 3000
NEMESIS_ROUNDS ?= 800
CASES ?= 20000
STATES ?= 60000000

# Errors of tests tell their causes; where an anyhow error was made helps nobody.
export RUST_LIB_BACKTRACE ?= 0

BUILT := $(or $(CARGO_TARGET_DIR),target)/release
PROGRAMS := -p dormouse-coordinator -p dormouse-persist-server -p dormouse-cli

heading = @printf '\n== %s\n' "$(1)"

.PHONY: help tools check test demo dev bench bench-storage soak soak-all clean

help: ## Show what can be made
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

tools: ## Install what is missing (nats-server, an S3 server, a Python with NATS, cargo-nextest) into .tools
	@scripts/tools nats-server s3-server interop cargo-nextest

check: ## Format, lints, documentation, import rules, chance, words; warnings are errors
	@scripts/tools lints
	cargo fmt --all --check
	cargo fmt --manifest-path benches/Cargo.toml --check
	cargo clippy$(LOCKED:%= %) --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc$(LOCKED:%= %) --workspace --no-deps
	scripts/check-imports --self-test
	scripts/check-imports
	scripts/check-chance --self-test
	scripts/check-chance
	scripts/check-words --self-test
	scripts/check-words
	scripts/measure-storage --self-test
	scripts/measure-failover --self-test

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

# What `make bench` measures: BENCH="get 128 B" only scenarios whose names contain that, TARGETS=echo,dormouse-disk only those, QUICK=1 a
# minute's worth, LONG=1 what takes long, RESUME=1 what an interrupted run had left. A run of everything goes into the documentation, a
# part only with WRITE=1. See benches/README.md.
BENCH ?=
TARGETS ?=
QUICK ?=
LONG ?=
WRITE ?=
RESUME ?=
BENCH_RESULTS := $(or $(CARGO_TARGET_DIR),target)/bench.json
BENCH_ARGS = $(if $(BENCH),--only "$(BENCH)") $(if $(TARGETS),--targets $(TARGETS)) $(if $(QUICK),--quick) $(if $(LONG),--long) $(if $(RESUME),--resume)

bench: ## Dormouse beside core NATS, JetStream, Redis and S2-lite, into docs/performance.md (BENCH=…, QUICK=1, LONG=1)
	@scripts/tools nats-server s3-server redis-server s2-lite
	cargo build$(LOCKED:%= %) --release -p dormouse-coordinator -p dormouse-persist-server
	cargo build$(LOCKED:%= %) --release --manifest-path benches/Cargo.toml --target-dir $(or $(CARGO_TARGET_DIR),target)
	$(BUILT)/dormouse-bench run $(strip $(BENCH_ARGS)) --out $(BENCH_RESULTS)
	$(BUILT)/dormouse-bench report$(if $(WRITE), --part) $(BENCH_RESULTS) docs/performance.md
	$(if $(LONG),$(if $(BENCH)$(TARGETS),,scripts/measure-failover))

bench-storage: ## The storage engine's figures and plain SQLite's beside them, into docs/performance.md (about 7 minutes)
	@scripts/tools build
	scripts/measure-storage$(LOCKED:%= %)

soak: ## Worlds of the simulation (SEEDS=n SEED_START=k); the last line is a summary
	cargo build$(LOCKED:%= %) --release -p dormouse-sim
	$(BUILT)/dormouse-sim soak --seeds $(SEEDS) --start $(SEED_START) --keep-going

soak-all: soak ## Hours of what `make test` has minutes of (KILL_ROUNDS=…, NEMESIS_ROUNDS=…, CASES=…, STATES=…), and what it leaves out
	@scripts/tools nats-server s3-server cargo-nextest azurite c++
	$(call heading,The bucket's contract on Azure's protocol)
	cargo test$(LOCKED:%= %) -p dormouse-storage --test bucket_contract -- --ignored azure
	$(call heading,Every property of the storage crate and of the client with $(CASES) cases)
	PROPTEST_CASES=$(CASES) cargo test$(LOCKED:%= %) --release -p dormouse-storage -p dormouse-client
	$(call heading,Twenty thousand subjects opened in turn)
	cargo test$(LOCKED:%= %) --release -p dormouse-storage --test engine -- --ignored
	$(call heading,The model with larger bounds: at most $(STATES) states for each)
	DORMOUSE_MODEL_STATES=$(STATES) cargo test$(LOCKED:%= %) -p dormouse-model --test soak -- --ignored --nocapture --test-threads 2
	$(call heading,Servers killed in $(KILL_ROUNDS) rounds with their disks lost and their leases slept through)
	cargo build$(LOCKED:%= %) --workspace --all-targets
	DORMOUSE_KILL_ROUNDS=$(KILL_ROUNDS) cargo test$(LOCKED:%= %) --workspace --test kill9 -- --nocapture
	$(call heading,A value of 1 GiB up and down)
	cargo test$(LOCKED:%= %) --workspace --test promises -- --ignored --nocapture values::
	$(call heading,Everything killed, stopped and cut off in $(NEMESIS_ROUNDS) rounds)
	DORMOUSE_NEMESIS_ROUNDS=$(NEMESIS_ROUNDS) cargo test$(LOCKED:%= %) --workspace --test nemesis -- --nocapture
	$(call heading,The driver of the comparison)
	cargo test$(LOCKED:%= %) --manifest-path benches/Cargo.toml --target-dir $(or $(CARGO_TARGET_DIR),target)
	$(call heading,The fuzz targets compile)
	@cp Cargo.lock fuzz/Cargo.lock
	cargo check --manifest-path fuzz/Cargo.toml --target-dir $(or $(CARGO_TARGET_DIR),target)
	@echo "To run one, with a nightly compiler and cargo-fuzz: cargo +nightly fuzz run TARGET -- -max_total_time=3600"
	@echo "The targets: $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))"

clean: ## Remove what was built (installed tools stay)
	cargo clean --quiet
