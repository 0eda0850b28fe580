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

# Packages whose tests boot machines: emulated guests and the race detector's slowdown do not fit into one deadline.
MODULE      := github.com/sporevm/spore
VM_PACKAGES := ^$(MODULE)/(internal/(guest/boot|vmm|sandbox|sandboxapi|bench)|test)(/|$$)
REPORT      := $(GO) run ./internal/house/testreport

.PHONY: build agent deps sdk kernel demo test lint unit vm docs bench fuzz clean help

build: agent ## build bin/spore with the guest agent embedded
	CGO_ENABLED=0 GOOS=linux GOARCH=$(BUILD_ARCH) $(GO) build -trimpath -ldflags='-s -w -X main.version=$(VERSION)' -o bin/spore ./cmd/spore

agent: ## build the guest agent for both architectures
	for arch in amd64 arm64; do \
	  CGO_ENABLED=0 GOOS=linux GOARCH=$$arch $(GO) build -trimpath -ldflags='-s -w -X main.version=$(VERSION)' -o $(AGENT_DIR)/spore-agent-$$arch ./cmd/spore-agent; \
	done

deps: ## install what is missing on this machine (apt)
	scripts/deps

sdk: deps ## install the public sandbox SDK for its test (npm)
	scripts/sdk

kernel: deps ## fetch and unpack the guest kernel (nothing is installed)
	scripts/kernel

demo: deps kernel build ## the whole journey on real input, with figures
	scripts/demo

test: deps sdk kernel build lint unit vm ## everything that CI runs

lint: agent ## vet, gofmt, staticcheck, shellcheck, and that it compiles for arm64
	test -z "$$(gofmt -l cmd internal test | tee /dev/stderr)"
	$(GO) vet ./...
	GOARCH=arm64 $(GO) build ./...
	$(GO) tool staticcheck ./...
	shellcheck scripts/* .ci/run

# Property tests draw the same here every time, so that a red run is the fault of the change at hand; `make fuzz` draws anew.
unit vm: export RAPID_SEED ?= 20260101

unit: agent ## tests that boot nothing, with the race detector
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
	rm -rf bin $(AGENT_DIR)/spore-agent-*

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
