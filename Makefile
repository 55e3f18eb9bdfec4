# SPDX-FileCopyrightText: The coffer authors
# SPDX-License-Identifier: Apache-2.0

SHELL := bash
.DEFAULT_GOAL := help

# Real components for demo and tests are built once into this folder.
export COFFER_TOOLS ?= $(CURDIR)/.tools/bin
export CGO_ENABLED := 0
export GOFLAGS ?= -buildvcs=false

BINARIES := coffer coffer-guest coffer-kbs coffer-snapshotter nydus-overlayfs-coffer
# The implementations that the image policy is compared with: a module of its own.
ORACLE := imagepull/policy/oracle
LINT := go tool -modfile=integration/tools/go.mod golangci-lint

.PHONY: help
help: ## show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the programs, static, into bin/
	go build -trimpath -ldflags '-s -w' -o bin/ $(addprefix ./cmd/,$(BINARIES))

PREFIX ?= /usr/local

.PHONY: install
install: build ## install the programs and their systemd units (PREFIX, DESTDIR)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)/etc/systemd/system
	install -m 755 $(addprefix bin/,$(BINARIES)) $(DESTDIR)$(PREFIX)/bin
	for u in deploy/systemd/*.service; do \
	    sed 's|/usr/local|$(PREFIX)|' "$$u" > $(DESTDIR)/etc/systemd/system/"$$(basename "$$u")"; done

.PHONY: tools
tools: ## install what demo and tests run beside coffer (Debian packages, containerd, runc, crictl, registry)
	integration/tools/install.sh

.PHONY: demo
demo: tools build ## encrypt a system image, run it through containerd, prove that the host never saw it (IMAGE=REF to choose)
	go build -trimpath -o bin/demo ./integration/demo
	exec bin/demo

.PHONY: test
test: tools build ## every test, those on real components included
	go test -timeout 20m ./...
	cd $(ORACLE) && go test -timeout 10m -tags containers_image_openpgp,exclude_graphdriver_btrfs ./...

.PHONY: test-unit
test-unit: ## the tests that need neither root nor other programs
	go test -timeout 10m $$(go list ./... | grep -v /integration)

.PHONY: race
race: ## the unit tests under the race detector
	CGO_ENABLED=1 go test -race -timeout 15m $$(go list ./... | grep -v /integration)

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (10s)
	integration/tools/fuzz.sh $(or $(FUZZTIME),10s)

.PHONY: lint
lint: ## golangci-lint, go vet for arm64, go.mod up to date, licence headers
	$(LINT) run --allow-parallel-runners ./...
	GOARCH=arm64 go vet ./cmd/...
	integration/tools/headers.sh
	go mod tidy -diff
	cd $(ORACLE) && go mod tidy -diff

.PHONY: generate
generate: ## regenerate what is generated (needs protoc)
	go generate ./...

.PHONY: bench
bench: build ## a pull beside its floor and its peers (BENCH='-quick', '-only pull', '-update': see docs/performance.md)
	integration/tools/install.sh peers
	go build -trimpath -o bin/bench ./integration/bench
	exec bin/bench $(BENCH)

.PHONY: clean
clean: ## remove what was built and generated, but for .tools
	rm -rf bin .demo .bench .cache
