# make help lists every target.
# One build cache for everything: the flags are part of its keys.
export GOFLAGS := $(strip $(GOFLAGS) -trimpath)
# The programs are shipped without cgo. What checks them is compiled the same way:
# build, vet, staticcheck and what tests build then share their dependencies. The
# race detector alone needs cgo.
export CGO_ENABLED := 0
RACE := CGO_ENABLED=1 go test -race
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X github.com/wrktalk/wrktalk-agent/internal/version.version=$(VERSION)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOFUMPT := mvdan.cc/gofumpt@v0.12.0
# Two packages at a time, for most tests wait for servers and containers: one is
# built while another runs. No result of an earlier run counts: what the tests
# start is unknown to go test. Lint has vetted everything already. The limit of
# time is for what hangs, and no measure of how long the tests take.
TESTFLAGS ?= -count=1 -vet=off -timeout 4h -p 2 -parallel 6
.PHONY: help build man packages image demo demo-kubernetes test lint prebuild unit fault fuzz fmt bench charts compose setup clean

help: ## list every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build both programs into bin/
	@go build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/wrktalk-agent ./cmd/wrktalk-deploy

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

man: ## write the manual pages into dist/man
	@go run -tags man ./cmd/wrktalk-agent man dist/man

packages: ## build deb and rpm for amd64 and arm64 into dist/packages
	@scripts/packages

# Nothing of the image runs while it is built, so that it can be built for other
# processors as well; its tag then names them.
image: export GOOS := linux
image: ARCH = $(or $(GOARCH),$(shell go env GOARCH))
image: OTHER = $(filter-out linux/$(shell go env GOHOSTARCH),$(shell go env GOHOSTOS)/$(ARCH))
image: PROGRAMS = bin$(if $(OTHER),/linux-$(ARCH))
image: IMAGE ?= wrktalk-agent:$(VERSION)$(if $(OTHER),-$(ARCH))
image: CONTEXT ?= dist/image
image: ## build the container image wrktalk-agent:VERSION; with GOARCH=arm64 for another processor
	@go build -ldflags '$(LDFLAGS)' -o $(PROGRAMS)/ ./cmd/wrktalk-agent ./cmd/wrktalk-deploy
	@rm -rf $(CONTEXT)
	@mkdir -p $(addprefix $(CONTEXT)/root/,etc/ssl/certs run usr/bin var/lib)
	@mkdir -m 1777 $(addprefix $(CONTEXT)/root/,tmp run/wrktalk-agent var/lib/wrktalk-agent)
	@cp /etc/ssl/certs/ca-certificates.crt $(CONTEXT)/root/etc/ssl/certs/
	@cp $(PROGRAMS)/wrktalk-agent $(PROGRAMS)/wrktalk-deploy $(CONTEXT)/root/usr/bin/
	@cp packaging/docker/Dockerfile $(CONTEXT)/
	@docker build --platform linux/$(ARCH) --label org.opencontainers.image.version=$(VERSION) -t $(IMAGE) $(CONTEXT)

test: ## lint and every test, race detector included, on real servers
	@scripts/setup test
	@$(MAKE) --no-print-directory lint build prebuild unit fault

lint: ## vet, staticcheck, gofumpt
	@go vet ./...
	@go vet -tags faultinject ./...
	@go run $(STATICCHECK) ./...
	@out=$$(go run $(GOFUMPT) -l .); if [ -n "$$out" ]; then echo "gofumpt would change:"; echo "$$out"; exit 1; fi

prebuild: ## build the control plane, helm, docker compose and the test application
	@go run ./internal/testenv/prebuild

unit: ## every test with the race detector, without set-up and lint
	@$(RACE) $(TESTFLAGS) ./...

fault: ## the tests that need fault points, in a build that has them
	@files=$$(grep -rl --include='*_test.go' '^//go:build faultinject' .); \
	tests=$$(sed -n 's/^func \(Test[A-Za-z0-9_]*\)(t .*/\1/p' $$files | paste -sd '|'); \
	$(RACE) $(TESTFLAGS) -tags faultinject -run "^($$tests)$$" $$(dirname $$files | sort -u)

FUZZTIME ?= 1m
fuzz: ## fuzz everything that parses, each for FUZZTIME (1m)
	@for file in $$(git ls-files '*fuzz_test.go'); do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(f .*/\1/p' $$file); do \
			echo "== $$target"; \
			go test -vet=off -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) ./$$(dirname $$file); \
		done; \
	done

fmt: ## format the code
	@go run $(GOFUMPT) -w .

bench: ## speed as ratios, side by side with the command line tools
	@scripts/setup test
	@go test -run '^$$' -bench . -benchtime 5x -timeout 30m ./...

charts: ## Helm releases of real charts, as the agent and as helm deploys them: make charts CHARTS=DIR
	@scripts/setup test
	@WRKTALK_TEST_CHARTS="$(abspath $(CHARTS))" go test -v -run TestPublicCharts -timeout 4h ./runner/helm

compose: ## Compose releases of real projects, as the agent and as docker compose deploys them: make compose DIR=DIR
	@scripts/setup test
	@WRKTALK_TEST_COMPOSE="$(abspath $(DIR))" go test -v -run TestPublicProjects -timeout 4h ./runner/compose

setup: ## install what build, test and demo need (as root, through apt)
	@scripts/setup all

clean: ## remove what was built
	@rm -rf bin dist
