# One command per task, the same on a laptop and in CI.
# No command needs root. If a system package is missing, scripts/tools installs it when it runs as root.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# If PATH lacks the toolchain, make searches these folders too. Tools that scripts/tools installed come last.
export PATH := $(PATH)$(CARGO_HOME:%=:%/bin)$(HOME:%=:%/.cargo/bin):/usr/local/cargo/bin:$(CURDIR)/.tools/bin

# CI sets LOCKED=--locked: an outdated lock file then fails the build.
LOCKED ?=
# Arguments for `make demo` and `make dev`.
ARGS ?=

# The number of runs that `make soak` simulates, and the first seed.
SEEDS ?= 20000
SEED_START ?= 0

# Further bounds of `make soak-all`: kill rounds (two to three seconds each), nemesis rounds (about fifteen seconds each),
# cases for each property test, and states for each bound of the model. With these values it takes hours.
KILL_ROUNDS ?= 3000
NEMESIS_ROUNDS ?= 800
CASES ?= 20000
STATES ?= 60000000

# An error in a test lists its causes. The backtrace of an anyhow error adds nothing useful.
export RUST_LIB_BACKTRACE ?= 0

BUILT := $(or $(CARGO_TARGET_DIR),target)/release
PROGRAMS := -p dormouse-coordinator -p dormouse-persist-server -p dormouse-cli

heading = @printf '\n== %s\n' "$(1)"

.PHONY: help tools check test demo dev bench bench-storage soak soak-all clean

help: ## List the commands
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

tools: ## Install missing tools (nats-server, an S3 server, a Python with NATS, cargo-nextest) into .tools
	@scripts/tools nats-server s3-server interop cargo-nextest

# benches/ is a workspace of its own. After the lints of this one, its lints take about a minute more.
check: ## Format, lints, documentation, import rules, external crates, determinism, vocabulary; warnings are errors
	@scripts/tools lints cargo-deny
	cargo fmt --all --check
	cargo fmt --manifest-path benches/Cargo.toml --check
	cargo clippy$(LOCKED:%= %) --workspace --all-targets -- -D warnings
	cargo clippy$(LOCKED:%= %) --manifest-path benches/Cargo.toml --target-dir $(or $(CARGO_TARGET_DIR),target) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc$(LOCKED:%= %) --workspace --no-deps
	scripts/check-imports --self-test
	scripts/check-imports
	scripts/check-dependencies --self-test
	scripts/check-dependencies$(LOCKED:%= %)
	scripts/check-determinism --self-test
	scripts/check-determinism
	scripts/check-words --self-test
	scripts/check-words
	scripts/measure-storage --self-test
	scripts/measure-failover --self-test

# The end-to-end tests start the programs, so the build runs first. The summary of nextest comes last.
test: tools ## Unit, property, contract, documentation and end-to-end tests
	cargo build$(LOCKED:%= %) --workspace --all-targets
	cargo test$(LOCKED:%= %) --workspace --doc --quiet
	@if cargo nextest --version >/dev/null 2>&1; then \
	    set -x; cargo nextest run $(LOCKED) --workspace; \
	else \
	    set -x; cargo test$(LOCKED:%= %) --workspace --all-targets --no-fail-fast; \
	fi

demo: ## The main use case on this machine's own data, with a server killed half way
	@scripts/tools nats-server
	cargo build$(LOCKED:%= %) --release $(PROGRAMS) -p dormouse-demo
	@$(BUILT)/dormouse-demo $(ARGS)

dev: ## Run a whole local fleet until Ctrl-C (ARGS="--servers 3 --port 4222")
	@scripts/tools nats-server
	cargo build$(LOCKED:%= %) --release $(PROGRAMS)
	@$(BUILT)/dormouse dev $(ARGS)

# Options of `make bench`, see benches/README.md:
#   BENCH="get 128 B"           only scenarios with this text in their names
#   TARGETS=echo,dormouse-disk  only these targets
#   QUICK=1                     a run of about a minute
#   LONG=1                      the scenarios that take long
#   RESUME=1                    the rest of an interrupted run
#   WRITE=1                     write a partial run into the documentation too, not only a complete run
BENCH ?=
TARGETS ?=
QUICK ?=
LONG ?=
WRITE ?=
RESUME ?=
BENCH_RESULTS := $(or $(CARGO_TARGET_DIR),target)/bench.json
BENCH_ARGS = $(if $(BENCH),--only "$(BENCH)") $(if $(TARGETS),--targets $(TARGETS)) $(if $(QUICK),--quick) $(if $(LONG),--long) $(if $(RESUME),--resume)

bench: ## Compare Dormouse with core NATS, JetStream, Redis and S2-lite in docs/benchmarks (BENCH=…, QUICK=1, LONG=1)
	@scripts/tools nats-server s3-server redis-server s2-lite
	cargo build$(LOCKED:%= %) --release -p dormouse-coordinator -p dormouse-persist-server
	cargo build$(LOCKED:%= %) --release --manifest-path benches/Cargo.toml --target-dir $(or $(CARGO_TARGET_DIR),target)
	$(BUILT)/dormouse-bench run $(strip $(BENCH_ARGS)) --out $(BENCH_RESULTS)
	$(BUILT)/dormouse-bench report$(if $(WRITE), --part) $(BENCH_RESULTS) docs/benchmarks
	$(if $(LONG),$(if $(BENCH)$(TARGETS),,scripts/measure-failover))

bench-storage: ## Compare the storage engine with plain SQLite in docs/benchmarks/storage.md (about 7 minutes)
	@scripts/tools build
	scripts/measure-storage$(LOCKED:%= %)

soak: ## Simulate many runs (SEEDS=n SEED_START=k); the last line is a summary
	cargo build$(LOCKED:%= %) --release -p dormouse-sim
	$(BUILT)/dormouse-sim soak --seeds $(SEEDS) --start $(SEED_START) --keep-going

soak-all: soak ## Run the tests with larger bounds, and the ignored tests, for hours (KILL_ROUNDS=…, NEMESIS_ROUNDS=…, CASES=…, STATES=…)
	@scripts/tools nats-server s3-server cargo-nextest azurite c++
	$(call heading,The bucket contract on the Azure protocol)
	cargo test$(LOCKED:%= %) -p dormouse-bucket --test bucket_contract -- --ignored azure
	$(call heading,A snapshot over a slow link)
	cargo test$(LOCKED:%= %) -p dormouse-bucket --test slow_links -- --ignored
	$(call heading,The log over a slow uplink)
	cargo test$(LOCKED:%= %) -p dormouse-commit-log --test slow_uplink -- --ignored --nocapture
	$(call heading,The property tests of formats, log, state, engine and client with $(CASES) cases each)
	PROPTEST_CASES=$(CASES) cargo test$(LOCKED:%= %) --release -p dormouse-format -p dormouse-commit-log -p dormouse-subject-state -p dormouse-engine -p dormouse-client
	$(call heading,Twenty thousand subjects opened in turn; memory for a subject of 8 GiB and a tail of 2 GiB)
	cargo test$(LOCKED:%= %) --release -p dormouse-engine --test engine -- --ignored
	$(call heading,The model with larger bounds: at most $(STATES) states each)
	DORMOUSE_MODEL_STATES=$(STATES) cargo test$(LOCKED:%= %) -p dormouse-model --test soak -- --ignored --nocapture --test-threads 2
	$(call heading,$(KILL_ROUNDS) kill rounds with lost disks and expired leases)
	cargo build$(LOCKED:%= %) --workspace --all-targets
	DORMOUSE_KILL_ROUNDS=$(KILL_ROUNDS) cargo test$(LOCKED:%= %) --workspace --test kill9 -- --nocapture
	$(call heading,Upload and download of a 1 GiB value)
	cargo test$(LOCKED:%= %) --workspace --test guarantees -- --ignored --nocapture values::
	$(call heading,$(NEMESIS_ROUNDS) nemesis rounds of killed processes and stopped processes and cut connections)
	DORMOUSE_NEMESIS_ROUNDS=$(NEMESIS_ROUNDS) cargo test$(LOCKED:%= %) --workspace --test nemesis -- --nocapture
	$(call heading,The tests of the benchmark driver)
	cargo test$(LOCKED:%= %) --manifest-path benches/Cargo.toml --target-dir $(or $(CARGO_TARGET_DIR),target)
	$(call heading,The fuzz targets compile)
	@cp Cargo.lock fuzz/Cargo.lock
	cargo check --manifest-path fuzz/Cargo.toml --target-dir $(or $(CARGO_TARGET_DIR),target)
	@echo "To run one, with a nightly compiler and cargo-fuzz: cargo +nightly fuzz run TARGET -- -max_total_time=3600"
	@echo "The targets: $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))"

clean: ## Remove the build output (installed tools stay)
	cargo clean --quiet
