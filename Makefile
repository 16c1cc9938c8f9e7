# Tasks for developers. `make run` and `make test` install only what they need.

# The ports of `make run`. Ports from 1024 on need no privilege.
HTTP_PORT ?= 8080
GRPC_PORT ?= 8443

.DEFAULT_GOAL := help
.PHONY: help run build ui profiling test clients test-sim test-model test-faults fuzz lint openapi bench growth push microbench static sbom

help: ## Show this help
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

run: ## Start an agent on ports 8080 (HTTP) and 8443 (gRPC), with its dashboard if Node.js is there
	@if command -v npm >/dev/null 2>&1; then scripts/build-ui; else echo "without Node.js there is no dashboard"; fi
	EA_ENV=$${EA_ENV:-development} EA_BIND_ADDRESS=$${EA_BIND_ADDRESS:-127.0.0.1} \
	EA_HTTP_PORT=$(HTTP_PORT) EA_GRPC_PORT=$(GRPC_PORT) cargo run --release --bin election-agent

ui: ## Build the dashboard, which the next build of the agent embeds: ui/dist
	scripts/build-ui

build: ## Build the agent and eactl: target/release/election-agent, target/release/eactl
	cargo build --release --locked -p election-agent -p election-ctl
	@scripts/strip-data target/release/election-agent
	@scripts/check-size target/release/election-agent
	@scripts/check-size target/release/eactl 12000000

profiling: ## Build it with line numbers, for profilers and backtraces: target/profiling/election-agent
	cargo build --profile profiling --locked

# Most tests mostly wait for servers: three times as many run at once as there are cores.
test: export RUST_TEST_THREADS ?= $(shell expr 3 \* $$(getconf _NPROCESSORS_ONLN))
test: ## Install what the tests need and run them all
	scripts/install-test-tools
	scripts/build-ui
	scripts/build-clients
	cargo test --workspace --locked --no-run
	cargo test $(WEAKENED) --no-run
	@echo "Several programs run at once. The output of each is shown when it has ended."
	@$(BESIDE) --jobs=2 test-busy test-docs test-ui test-libraries
	@$(BESIDE) --jobs=4 test-integration test-long test-typescript test-python test-rust
	scripts/run-tests suite

# Parts of `make test`, which builds what they need; alone they would leave cores idle. The integration tests that keep
# the cores busy run together with tests without time limits, the other ones with the clients' tests, and the
# conformance suite, which mostly checks times, alone. The longest tests begin with the others, so as not to end last.
BESIDE = $(MAKE) --no-print-directory --keep-going $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
BUSY = browsers:: clients:: dashboard:: deployment:: observability::
LONG = survival:: upgrade::
HALF := $(shell expr \( $${RUST_TEST_THREADS:-2} + 1 \) / 2)
.PHONY: test-busy test-docs test-ui test-libraries test-integration test-long test-typescript test-python test-rust

test-busy:
	scripts/run-tests integration -- $(BUSY)

test-integration:
	scripts/run-tests integration -- $(BUSY:%=--skip %) $(LONG:%=--skip %)

test-long: export RUST_TEST_THREADS := $(HALF)
test-long:
	scripts/run-tests integration -- $(LONG)

test-python:
	cd clients/python && ../../target/python/venv/bin/pytest --quiet

test-typescript:
	cd clients/typescript && npm run --silent typecheck && npx vitest run

test-libraries:
	scripts/run-tests --but integration suite eactl client
	cargo test $(WEAKENED)

test-rust: export RUST_TEST_THREADS := $(HALF)
test-rust:
	scripts/run-tests eactl client

WEAKENED = --workspace --features election-core/weaken --locked --test model --test simulation

test-ui:
	cd ui && npm test --silent

# Without make's flags: they name descriptors that are not open here, and the compiler warns about them.
test-docs:
	MAKEFLAGS= cargo test --workspace --locked --doc

clients: ## Build the packages of the Python and TypeScript clients, install each as users do, and lead once with it
	scripts/build-clients
	cargo build --locked
	clients/python/scripts/check-package
	clients/typescript/scripts/check-package

# SIM_SEED=… replays one seed; SIM_FIRST and SIM_SEEDS choose others. SIM_RULE_SEEDS is the number of seeds
# for each disabled rule.
test-sim: ## Simulate many seeds: the quorum over a bad network and bad nodes
	SIM_SEEDS=$${SIM_SEEDS:-20000} SIM_RULE_SEEDS=$${SIM_RULE_SEEDS:-100} cargo test -p election-core --release --features weaken --locked \
		--test simulation -- --nocapture

test-model: ## Check the model of the algorithm in larger worlds
	cargo test -p election-core --release --locked --features weaken,deep-model --test model -- --nocapture

# SURVIVAL_SEED=… replays a schedule of faults. SURVIVAL_SECONDS is the duration for each topology.
test-faults: ## Let candidates contend for two minutes while real servers and agents fail
	scripts/install-test-tools
	SURVIVAL_SECONDS=$${SURVIVAL_SECONDS:-120} cargo test --locked --test integration survival:: -- \
		--nocapture --test-threads=1

# FUZZ_SECONDS is the duration for each target. FUZZ_TARGET=… runs one: connection, grpc_frames, policy, rest
# or settings.
fuzz: ## Fuzz the parsers of untrusted bytes, ten minutes for each target
	FUZZ_SECONDS=$${FUZZ_SECONDS:-600} scripts/fuzz $(FUZZ_TARGET)

lint: ## Check format, lints, docs, and licences if cargo-deny is installed
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy --workspace --features election-core/weaken,election-core/deep-model --locked --test model --test simulation -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked
	scripts/build-clients
	clients/python/scripts/lint
	cd clients/typescript && npm run --silent lint
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check; \
	else echo "cargo-deny is not installed: licences and advisories are not checked"; fi

openapi: ## Write openapi/openapi_v3.yaml from the code
	cargo run --quiet --bin election-agent -- openapi > openapi/openapi_v3.yaml.new
	mv openapi/openapi_v3.yaml.new openapi/openapi_v3.yaml

# Example: BENCH_FLAGS="--rounds 3 --json bench.json". `target/release/loadtest bench --help` lists all flags.
bench: WAIT_FLAGS ?= --agents 1
bench: push ## Measure waits, observers and the cost of requests, and fail if requests cost more than the bars allow
	target/release/loadtest bench --agent target/release/election-agent $(BENCH_FLAGS)

# GROWTH_FLAGS=clients, nodes or elections measures only that.
growth: ## Measure how cost grows with clients, Redis servers and elections held
	cargo build --release --locked -p election-agent -p loadtest
	target/release/loadtest growth --agent target/release/election-agent $(GROWTH_FLAGS)

# WAIT_FLAGS="--agents 1 --waiters 1000", OBSERVE_FLAGS="--observers 1000" and LEAD_FLAGS="--elections 500" measure with
# other numbers.
push: ## Measure campaigns that wait, observers and streams that lead, beside goals
	cargo build --release --locked -p election-agent -p loadtest
	target/release/loadtest wait --agent target/release/election-agent $(WAIT_FLAGS)
	target/release/loadtest observe --agent target/release/election-agent $(OBSERVE_FLAGS)
	target/release/loadtest lead --agent target/release/election-agent $(LEAD_FLAGS)

# BENCH="--bench pure -- quorum/" runs a part. The flags -- --save-baseline and -- --baseline compare.
microbench: ## Measure with criterion: the pure parts, and single calls
	cargo bench --locked $(or $(BENCH),--bench pure --bench rpc)

static: ## Build the agent and eactl as static files, without a C library: target/static
	scripts/build-static

sbom: ## List what is built in, with versions and licences: target/sbom
	scripts/sbom
