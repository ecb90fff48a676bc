# Every recipe is a script of tests/, which says what it does and can be run by itself.

.DEFAULT_GOAL := help
.PHONY: help build images cluster cluster-down demo test bench fuzz lint clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## From a fresh machine to a container that sees a real cluster; cleans up behind itself
	@tests/demo.sh

test: ## Everything: lint, tests of the crates, end to end on a cluster of its own
	@tests/check.sh

lint: ## The part of `test` that needs neither engine nor cluster
	@tests/check.sh lint

build: ## Static release binaries: dist/tp, dist/tp-manager, dist/tp-agent
	@tests/build.sh

images: build ## Their images in the local engine
	@tests/images.sh

cluster: images ## A cluster with manager and samples; the last line is `export KUBECONFIG=...`
	@tests/testbed.sh up

cluster-down: ## Remove that cluster and its traces
	@tests/testbed.sh down

bench: images ## Figures: direct route, kubectl port-forward and tp side by side
	@tests/bench.sh

fuzz: ## Look for network bytes that break something, 20 s for each parser; tests/fuzz.sh --seconds N for longer
	@tests/fuzz.sh

clean: ## Remove what was built here; images and caches go with `tests/cluster/cluster.sh purge`
	@rm -rf dist target .tmp fuzz/target fuzz/artifacts
