# Everything a developer or a new user does here. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help

export CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TERM_COLOR ?= auto

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 18

.PHONY: deps
deps: ## Install what building and testing need (protoc, etcd, kcat; needs apt and root)
	@deploy/scripts/deps.sh build test

.PHONY: build
build: ## Build the release binaries: the broker and the observer
	@deploy/scripts/deps.sh build
	cargo build --release --locked -p strandline-broker -p strandline-mcp --bins

# In a copy of the workspace whose product has deliberate bugs.
MUTATED := tests/sim/mutations/cargo.sh

.PHONY: test
test: ## Run the fast tests, on real etcd and an S3 server
	@deploy/scripts/deps.sh build test mutations
	# All targets at once: binaries and tests then share one build of every dependency.
	cargo build --locked --workspace --all-targets
	STRANDLINE_REQUIRE_ETCD=1 cargo test --locked --workspace
	# The whole workspace here too: its dependencies then have the same features, and are built once.
	$(MUTATED) test --locked --workspace --features strandline-sim/mutations --test mutations
	deploy/scripts/one-build.sh

.PHONY: test-clients
test-clients: ## Run the suites of real clients against three brokers (long)
	@deploy/scripts/deps.sh build test clients
	cargo build --locked --workspace --bins
	tests/clients/run.sh

.PHONY: test-upgrade
test-upgrade: ## Run brokers of an older commit beside those of this one, under load: make test-upgrade [OLD=commit] (compiles it)
	@deploy/scripts/deps.sh build test
	cargo build --locked --workspace --bins
	tests/upgrade.sh $(or $(OLD),746b0414dd8786baa320775b046883661add03b8)

.PHONY: test-mcp
test-mcp: ## Try the observer with the protocol's conformance suite, the inspector and real clients (long)
	@deploy/scripts/deps.sh build test
	cargo build --locked --workspace --all-targets
	tests/mcp/run.sh

.PHONY: test-mcp-confluent
test-mcp-confluent: ## Have Confluent's own MCP server use a topic here (compiles its Kafka client once)
	@deploy/scripts/deps.sh build test
	cargo build --locked -p strandline-broker --bins
	tests/mcp/confluent.sh

.PHONY: sim
sim: ## Simulate whole clusters with faults: make sim [SEED=n | FROM=n SEEDS=n]
	@deploy/scripts/deps.sh build
	cargo build --release --locked -p strandline-sim
	$(CARGO_TARGET_DIR)/release/strandline-sim $(if $(SEED),$(SEED),$(or $(FROM),0) $(or $(SEEDS),1000))

.PHONY: mutations
mutations: ## Try whether the simulation finds every deliberate bug
	@deploy/scripts/deps.sh build mutations
	$(MUTATED) test --release --locked -p strandline-sim --features mutations --test mutations -- --include-ignored --nocapture

.PHONY: linearizable
linearizable: ## Have porcupine check what clients of simulated clusters were told: make linearizable [SEEDS=n] (needs Go)
	@deploy/scripts/deps.sh build
	cargo build --release --locked -p strandline-sim
	tests/porcupine/run.sh $(CARGO_TARGET_DIR)/release/strandline-sim $(SEEDS)

.PHONY: chaos
chaos: ## Hurt a cluster of real processes, and check it: make chaos [MINUTES=10] [SEED=n] [OLDER=program]
	@deploy/scripts/deps.sh build test
	cargo build --release --locked --workspace --bin strandline --bin strandline-dev-s3 --bin strandline-chaos
	$(CARGO_TARGET_DIR)/release/strandline-chaos $(if $(OLDER),--older $(OLDER)) $(or $(MINUTES),10) $(SEED)

.PHONY: hostile
hostile: ## Press on a broker with hostile clients of every kind: make hostile [SECONDS=20] [KINDS="…"]
	@deploy/scripts/deps.sh build test
	cargo build --release --locked --workspace --bin strandline --bin strandline-dev-s3 --bin strandline-hostile
	$(CARGO_TARGET_DIR)/release/strandline-hostile $(or $(SECONDS),20) $(KINDS)

.PHONY: model
model: ## Check larger models of the commit protocol than make test does
	@deploy/scripts/deps.sh build
	cargo test --release --locked -p strandline-model -- --include-ignored --nocapture

.PHONY: fuzz
fuzz: ## Fuzz every decoder of foreign bytes, with a nightly compiler: make fuzz [TARGET=name] [SECONDS=600]
	@deploy/scripts/deps.sh build
	tests/fuzz/run.sh $(or $(SECONDS),600) $(TARGET)

.PHONY: check
check: ## Format, clippy, docs, licences and advisories
	@deploy/scripts/deps.sh build check mutations
	cargo fmt --all --check
	deploy/scripts/comments.sh
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p strandline-metadata --no-default-features --lib --tests -- -D warnings
	$(MUTATED) clippy --locked --workspace --features strandline-sim/mutations --lib --bin strandline-sim --test mutations -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items
	deploy/scripts/supply-chain.sh

.PHONY: bench
bench: ## Measure speed side by side with the floor; a table and JSON under target/release/bench
	@deploy/scripts/deps.sh build test
	cargo build --release --locked --workspace --bins
	$(CARGO_TARGET_DIR)/release/strandline-bench
	tests/bench/rebalance/run.sh

.PHONY: demo-platform
demo-platform: ## Start the whole platform: etcd, S3, three brokers (9092), the observer (8090)
	@deploy/scripts/demo.sh start

.PHONY: demo-status
demo-status: ## Show what of the platform is running
	@deploy/scripts/demo.sh status

.PHONY: demo-stop
demo-stop: ## Stop what demo-platform started, and nothing else
	@deploy/scripts/demo.sh stop
