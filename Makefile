# Every target sets up what it needs by itself: a Rust toolchain and make are enough.
# There is one profile, release, so that RocksDB (ten minutes of C++ on two cores) is compiled once.

CARGO ?= cargo
# In CI the lock file is law; at the desk it may be brought up to date.
LOCKED := $(if $(CI),--locked)
PROFILE := --release --workspace $(LOCKED)

.DEFAULT_GOAL := help
.PHONY: setup build demo test test-long bench lint fmt clean help

setup: ## Find or install what RocksDB's build needs: C and C++20 compilers, libclang
	@deploy/setup.sh

build: setup ## Build copse-node and copse
	$(CARGO) build $(PROFILE) --bins

demo: build ## Eight nodes, a real folder, two deaths and a rotten disk: the folder comes back
	@deploy/demo.sh

test: build ## Run every test (the process tests start the built programs)
	$(CARGO) test $(PROFILE) --no-fail-fast

test-long: build ## The tests that take minutes each: every node replaced, every phase of a repair
	$(CARGO) test $(PROFILE) --no-fail-fast --test repair --test acceptance -- --ignored

bench: build ## Measure; the figures are ratios inside one run
	@deploy/bench.sh

lint: setup ## Format, clippy, direction, header, document and shell checks
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(PROFILE) --all-targets -- -D warnings
	@deploy/check-directions.sh
	@deploy/check-sources.sh

fmt: ## Format the sources
	$(CARGO) fmt --all

clean: ## Remove what was built (also from CARGO_TARGET_DIR)
	$(CARGO) clean

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile
