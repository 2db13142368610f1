# make help lists every target.
# One build cache for everything: the flags are part of its keys.
export GOFLAGS := $(strip $(GOFLAGS) -trimpath)
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X github.com/wrktalk/wrktalk-agent/internal/version.version=$(VERSION)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOFUMPT := mvdan.cc/gofumpt@v0.12.0
# One package at a time: each starts servers of its own, and two compete for cores.
# The limits are for what hangs, and no measure of how long the tests take.
TESTFLAGS ?= -race -timeout 4h -p 1

.PHONY: help build image demo demo-kubernetes test lint prebuild unit fault fmt bench charts setup clean

help: ## list every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build both programs into bin/
	@CGO_ENABLED=0 go build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/wrktalk-agent ./cmd/wrktalk-deploy

demo: ## see it work: a throw-away database, two releases deployed, the mails
	@scripts/setup demo
	@$(MAKE) --no-print-directory build
	@go build -o bin/demo ./demo
	@exec bin/demo

demo-kubernetes: ## the same on Kubernetes: install, upgrade, a release that fails, a rollback
	@scripts/setup demo-kubernetes
	@$(MAKE) --no-print-directory build
	@go build -o bin/demo ./demo
	@exec bin/demo kubernetes

image: build ## build the container image wrktalk-agent:VERSION
	@rm -rf dist/image
	@mkdir -p dist/image/bin
	@cp bin/wrktalk-agent bin/wrktalk-deploy dist/image/bin/
	@cp /etc/ssl/certs/ca-certificates.crt packaging/docker/Dockerfile dist/image/
	@docker build -t wrktalk-agent:$(VERSION) dist/image

test: ## lint and every test, race detector included, on real servers
	@scripts/setup test
	@$(MAKE) --no-print-directory lint build prebuild unit fault

lint: ## vet, staticcheck, gofumpt
	@go vet ./...
	@go run $(STATICCHECK) ./...
	@out=$$(go run $(GOFUMPT) -l .); if [ -n "$$out" ]; then echo "gofumpt would change:"; echo "$$out"; exit 1; fi

prebuild: ## build the control plane, helm and docker compose that tests run
	@go run ./internal/testenv/prebuild

unit: ## every test with the race detector, without set-up and lint
	@go test $(TESTFLAGS) ./...

fault: ## the fault points themselves, in a build that has them
	@go test -tags faultinject -race -timeout 1h ./internal/fault ./internal/durable ./internal/shred ./internal/staging

fmt: ## format the code
	@go run $(GOFUMPT) -w .

bench: ## speed as ratios, side by side with the command line tools
	@scripts/setup test
	@go test -run '^$$' -bench . -benchtime 5x -timeout 30m ./...

charts: ## Helm releases of real charts, as the agent and as helm deploys them: make charts CHARTS=DIR
	@scripts/setup test
	@WRKTALK_TEST_CHARTS="$(abspath $(CHARTS))" go test -v -run TestPublicCharts -timeout 4h ./runner/helm

setup: ## install what build, test and demo need (as root, through apt)
	@scripts/setup all

clean: ## remove what was built
	@rm -rf bin dist
