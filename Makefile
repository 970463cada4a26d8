# Every task that a person runs. `make` alone lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR

.PHONY: help
help: ## List these targets
	@echo 'make TARGET:'
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name text; do printf '  %-20s %s\n' "$$name" "$$text"; done

.PHONY: build
build: ## Build the control plane and the proxy for development
	cargo build --locked --workspace

.PHONY: release
release: ## Build both binaries as they are shipped, into target/dist (a quarter of an hour; root to train the proxy, TRAIN=0 to leave that out)
	@.ci/release

.PHONY: test
test: ## Run everything CI runs: lints, unit, property and end-to-end tests, chart (root for network namespaces)
	@.ci/test

.PHONY: lint
lint: ## Check formatting, clippy, dependencies, scripts and the chart
	@.ci/test scripts links fmt deny chart clippy

.PHONY: fmt
fmt: ## Format the Rust code
	cargo fmt --all

.PHONY: deny
deny: ## Check licenses, duplicate versions and sources of the dependencies
	@.ci/test deny

.PHONY: chart
chart: ## Lint the Helm chart and check what it renders
	@.ci/test chart

.PHONY: demo
demo: ## Show the mesh at work, in a minute (network namespaces as root, loopback addresses otherwise)
	@.ci/install demo
	cargo build --locked -p sidewind -p sidewind-proxy -p sidewind-tests --bins
	@$(CARGO_TARGET_DIR)/debug/demo

.PHONY: demo-airflow
demo-airflow: ## Show the mesh beneath a real Airflow, in minutes, and what each of its tasks calls (root for network namespaces)
	@.ci/demo-airflow

.PHONY: bench
bench: ## Measure Sidewind beside HAProxy, nginx and Envoy (root; BENCH_SHORT=1 for a quick look)
	@.ci/bench

.PHONY: bench-control-plane
bench-control-plane: ## Measure what one control plane carries: 10,000 simulated proxies (BENCH_SHORT=1 for 200 of them)
	@.ci/bench-control-plane

.PHONY: bench-pieces
bench-pieces: ## Measure single pieces of the data path: authorization, header rewriting, detection, the access-log line
	@cargo bench --locked -p sidewind-proxy

# Run alone: the processes that it starts are counted.
.PHONY: bench-task-search
bench-task-search: ## Measure finding the Airflow task behind a connection, among 200 processes (root)
	@cargo bench --locked -p sidewind-proxy --bench task_search

.PHONY: soak
soak: ## Run the long tests: rotation under load for minutes (root for network namespaces)
	@.ci/soak

.PHONY: fuzz
fuzz: ## Fuzz what reads bytes of strangers, a minute for each target (FUZZ_SECONDS=600 for longer)
	@.ci/fuzz $(or $(FUZZ_SECONDS),60)

.PHONY: image
image: release ## Build the container images (needs a Docker engine; target/image holds their file systems either way)
	@.ci/image

.PHONY: reference
reference: ## Write docs/settings.md from the proxy's own table of settings
	@.ci/reference write

.PHONY: clean
clean: ## Remove everything that was built
	cargo clean
