# spore: `make` builds, `make demo` shows what it does, `make test` runs all that CI runs.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

GO         ?= go
# What spore itself is compiled for (amd64 or arm64). The agent is always built for both: a host may run either guest.
BUILD_ARCH ?= $(shell $(GO) env GOARCH)
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
AGENT_DIR  := internal/guest/agentbin/bin
WEB_DIR    := internal/console/web
WEB_OUT    := internal/console/dist

# Packages whose tests boot machines: emulated guests and the race detector's slowdown do not fit into one deadline.
MODULE      := github.com/sporevm/spore
VM_PACKAGES := ^$(MODULE)/(internal/(guest/boot|vmm|sandbox|sandboxapi|bench)|test)(/|$$)
REPORT      := $(GO) run ./internal/house/testreport

# Targets fetch and build into the same places, and tests count what is there: one after another, however many jobs make was given.
.NOTPARALLEL:
.PHONY: build agent web deps modules sdk kernel demo test lint unit vm docs bench fuzz clean help

build: agent web ## build bin/spore with the guest agent and the web console embedded
	CGO_ENABLED=0 GOOS=linux GOARCH=$(BUILD_ARCH) $(GO) build -trimpath -ldflags='-s -w -X main.version=$(VERSION)' -o bin/spore ./cmd/spore

agent: ## build the guest agent for both architectures
	for arch in amd64 arm64; do \
	  CGO_ENABLED=0 GOOS=linux GOARCH=$$arch $(GO) build -trimpath -ldflags='-s -w -X main.version=$(VERSION)' -o $(AGENT_DIR)/spore-agent-$$arch ./cmd/spore-agent; \
	done

web: $(WEB_OUT)/index.html ## bundle the web console

# What npm installs is done when it has written its own record of it.
$(WEB_DIR)/node_modules/.package-lock.json: $(WEB_DIR)/package-lock.json $(WEB_DIR)/package.json
	command -v npm >/dev/null || scripts/deps
	cd $(WEB_DIR) && $(CURDIR)/scripts/again npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@

$(WEB_OUT)/index.html: $(WEB_DIR)/node_modules/.package-lock.json $(WEB_DIR)/build.mjs $(shell find $(WEB_DIR)/src -type f)
	node $(WEB_DIR)/build.mjs
	touch $@

deps: ## install what is missing on this machine (apt)
	scripts/deps

modules: ## fetch the Go modules of spore, its tools and its tests
	scripts/again $(GO) mod download
	cd test/emulators && $(CURDIR)/scripts/again $(GO) list -deps . >/dev/null

sdk: deps ## install the public sandbox SDK for its test (npm)
	scripts/sdk

kernel: deps ## fetch and unpack the guest kernel (nothing is installed)
	scripts/kernel

demo: deps kernel build ## the whole journey on real input, with figures
	scripts/demo

test: deps modules sdk kernel build lint unit vm ## everything that CI runs

lint: agent web ## vet, gofmt, staticcheck, shellcheck, tsc, and that it compiles for arm64
	unformatted=$$(gofmt -l cmd internal test); if [ -n "$$unformatted" ]; then echo "not formatted: $$unformatted" >&2; exit 1; fi
	$(GO) vet ./...
	GOARCH=arm64 $(GO) build ./...
	$(GO) tool staticcheck ./...
	shellcheck scripts/* .ci/run
	cd $(WEB_DIR) && npm run --silent check

# Property tests draw the same here every time, so that a red run is the fault of the change at hand; `make fuzz` draws anew.
unit vm: export RAPID_SEED ?= 20260101

unit: agent web ## tests that boot nothing, with the race detector
	CGO_ENABLED=1 $(GO) test -json -race -timeout 10m $$($(GO) list ./... | grep -vE '$(VM_PACKAGES)') | $(REPORT)

vm: deps sdk kernel build ## tests that boot machines
	$(GO) test -json -p 1 -timeout 20m $$($(GO) list ./... | grep -E '$(VM_PACKAGES)') | $(REPORT)

docs: ## write docs/commands from the command line's own help
	$(GO) run ./internal/cli/gendocs docs/commands

bench: build kernel ## measure the engine: bench/engine.json and a table
	mkdir -p bench
	bin/spore bench engine --json > bench/engine.json
	$(GO) test -run '^$$' -bench . ./internal/block

FUZZTIME ?= 20s
fuzz: ## run every fuzz target for FUZZTIME (20s), and the property tests on new draws
	scripts/fuzz $(FUZZTIME)

clean: ## remove what was built
	rm -rf bin $(AGENT_DIR)/spore-agent-* $(WEB_OUT)/index.html $(WEB_OUT)/assets $(WEB_DIR)/node_modules

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
