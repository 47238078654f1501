# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: help demo cluster-demo cluster cluster-down programs demo-programs test test-faults crds bench-stats bench-micro bench-sim bench-rollouts bench-poll bench-fleet

CLUSTER := tests/cluster/cluster
STATIC := x86_64-unknown-linux-gnu

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## good and bad versions, an incident, thin traffic, a killed controller: simulated, in a minute (once built)
	@cargo run --quiet -p davylamp-cli -- demo

cluster-demo: programs ## a good version is promoted and a bad one rolled back, on a real cluster (about 5 minutes, once built)
	$(CLUSTER) up
	target/debug/cluster-demo

cluster: ## start a real cluster on this machine, to try things on
	$(CLUSTER) up

cluster-down: ## remove all of it
	$(CLUSTER) down

programs: demo-programs ## build what the demo and the cluster tests run
	cargo build --workspace --bins

# Static, for they run in images that hold nothing else. The target folder is named, so that other builds keep theirs.
demo-programs:
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile demo -p davylamp-demo --bins --target $(STATIC)

test: ## everything: formatting, lints, documentation, all tests, the cluster tests included
	tests/run

test-faults: ## simulate each story with each fault at each place, some 18,000 runs (about 40 minutes on two cores)
	DAVYLAMP_FAULTS=all cargo test -p davylamp-sim --test faults -- --nocapture

crds: ## write deploy/crds
	@mkdir -p deploy/crds
	cargo run --quiet -p davylamp-controller -- crd --directory deploy/crds

bench-stats: ## simulate who rolls back what and when: bench/results, and the page of the guide (about 30 minutes)
	cargo run --quiet --release -p davylamp-bench

bench-micro: ## measure what a round of a metric costs
	cargo bench -p davylamp-bench --bench rounds

bench-sim: ## measure what a simulated hour costs, and what becomes of a thousand good canaries: bench/results
	cargo bench -p davylamp-sim --bench hours

bench-rollouts: ## measure what becomes of a thousand rollouts in each of ten worlds: bench/results (about 2 hours)
	cargo bench -p davylamp-sim --bench rollouts

bench-poll: ## measure what a poll of ten metrics costs the controller: bench/results
	cargo bench -p davylamp-controller --bench poll

bench-fleet: ## measure what 200 Rollouts with five metrics cost the controller: bench/results (about 12 minutes)
	cargo build --release -p davylamp-controller
	cargo bench -p davylamp-sim --bench fleet
