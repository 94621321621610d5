# SPDX-License-Identifier: Apache-2.0

# Development tools, pinned here and nowhere else. They do not enter go.mod.
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK   := golang.org/x/vuln/cmd/govulncheck@v1.8.0
BUF           := github.com/bufbuild/buf/cmd/buf@v1.73.0

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo development)
LDFLAGS := -X main.version=$(VERSION)

# The same program is built, tested, and linked statically: Go's own resolvers
# in place of those that glibc would load at run time, and a SQLite that loads
# no extensions. The version is linked in, so that git is not asked for it again.
export GOFLAGS := $(strip $(GOFLAGS) -buildvcs=false -tags=netgo,osusergo,sqlite_omit_load_extension)

FUZZTIME ?= 30s

.PHONY: help run test bench build static race lint vuln generate fuzz unit image image-test clean setup

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: build ## Run an agent with a sample secret until Ctrl-C
	@./scripts/run

test: setup ## Run all tests
	go test -timeout 20m ./...

bench: setup ## Print the performance ratios of docs/performance.md
	go test -timeout 30m -run '^$$' -bench . -benchtime 25x ./test/bench

build: setup ## Build bin/keyhole
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/keyhole ./cmd/keyhole

static: ## Build bin/static/keyhole, which needs no shared library
	CGO_ENABLED=1 go build -trimpath -ldflags '$(LDFLAGS) -s -w -linkmode external -extldflags -static' -o bin/static/keyhole ./cmd/keyhole

race: setup ## Run the tests with the race detector
	go test -race -short -timeout 30m ./...

lint: setup ## Check style, imports and generated code
	test -z "$$(gofmt -l .)"
	go vet ./...
	go run $(GOLANGCI_LINT) run
	cd socket && go run $(BUF) lint

vuln: ## Look for known vulnerabilities in what we use
	go run $(GOVULNCHECK) ./...

generate: ## Generate the gRPC code again
	cd socket && go run $(BUF) generate

fuzz: setup ## Fuzz every parser for FUZZTIME each
	./scripts/fuzz $(FUZZTIME)

unit: ## Check the systemd unit
	./scripts/check-unit

image: ## Build the container image with docker, podman or buildah
	./scripts/image

image-test: ## Build the image on a Debian bootstrapped here, and run it; as root
	./scripts/image-test

clean: ## Remove what was built
	rm -rf bin

setup:
	@./scripts/setup
