# `make help` lists the targets. Nothing is installed outside this directory.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BINARIES := patchkeep patchkeep-mirror patchkeep-agent tuf-conformance
IMAGES   := patchkeep mirror agent

# What --version says. Set them where there is no git, such as in an image.
VERSION ?= $(shell git describe --tags --match 'v*' --dirty 2>/dev/null || echo devel)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null)
DATE    ?= $(shell TZ=UTC0 git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null)

CLI     := github.com/patchkeep/patchkeep/cmd/internal/cli
LDFLAGS := -s -w -X $(CLI).version=$(VERSION) -X $(CLI).commit=$(COMMIT) -X $(CLI).date=$(DATE)

# Tools at fixed versions. A new version is a new stamp, so it is built once.
TOOLS    := $(CURDIR)/.tools
STAMP    := $(TOOLS)/stamp
GOTESTSUM := gotest.tools/gotestsum@v1.13.0
LINTER    := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.12.2
S3SERVER  := github.com/versity/versitygw/cmd/versitygw@v1.8.0
stamp     = $(STAMP)/$(notdir $(1))

export PATH := $(TOOLS)/bin:$(PATH)

FUZZTIME ?= 60s
SHORTFUZZ ?= 3s

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: build ## watch a patch travel from publisher to PC; PATCH=path takes a file of yours
	@PATCH="$(PATCH)" bash keys-example/demo.sh

.PHONY: build
build: ## build the programs into bin/
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./cmd/,$(BINARIES))

.PHONY: test
test: $(call stamp,$(GOTESTSUM)) $(call stamp,$(S3SERVER)) ## vet, fuzz for a moment, and run all tests
	go vet ./...
	bash .ci/fuzz $(SHORTFUZZ)
	go test -run '^TestThousandFaultyDownloads$$' ./cmd/patchkeep-agent # all of them: with -race there are fewer
	gotestsum --format pkgname -- -race -timeout 20m ./...

.PHONY: lint
lint: $(call stamp,$(LINTER)) ## check style, walls between packages, and formatting
	GOLANGCI_LINT_CACHE=$(TOOLS)/lint-cache golangci-lint run --allow-parallel-runners ./...

# What the programs are built for. What differs from system to system is vetted
# with its tests; `make test` vets this one.
SYSTEMS := linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64
VETTED  := darwin/arm64 windows/amd64
on       = GOOS=$(firstword $(subst /, ,$(1))) GOARCH=$(lastword $(subst /, ,$(1))) CGO_ENABLED=0

.PHONY: cross
cross: ## build for linux, darwin and windows, on amd64 and arm64, and vet
	$(foreach s,$(SYSTEMS),$(call on,$(s)) go build ./... &&) true
	PATCHKEEP_CROSS=1 go test -run '^TestAgentOnEachSystem$$' -timeout 30m -v ./cmd
	$(foreach s,$(VETTED),$(call on,$(s)) go vet ./... &&) true

.PHONY: fuzz
fuzz: ## fuzz each target for FUZZTIME (60s)
	bash .ci/fuzz $(FUZZTIME)

.PHONY: bench
bench: build $(call stamp,$(S3SERVER)) ## measure, beside curl, nginx, wrk, bsdiff and zstd, in an hour
	go test -run '^$$' -bench . -benchtime 5x -timeout 60m -v ./client ./cmd
	go test -run '^$$' -bench . -timeout 60m $$(go list ./... | grep -Ev '/(client|cmd)$$')

.PHONY: docker
docker: ## build an image of each program
	$(foreach i,$(IMAGES),docker build --target $(i) -t patchkeep/$(i):$(VERSION) \
		--build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) --build-arg DATE=$(DATE) . &&) true

.PHONY: tools
tools: $(foreach t,$(GOTESTSUM) $(LINTER) $(S3SERVER),$(call stamp,$(t))) ## install the tools into .tools/

define install-tool
$(call stamp,$(1)):
	@mkdir -p $(STAMP)
	GOBIN=$(TOOLS)/bin CGO_ENABLED=0 go install $(1)
	@touch $$@
endef
$(foreach t,$(GOTESTSUM) $(LINTER) $(S3SERVER),$(eval $(call install-tool,$(t))))

.PHONY: clean
clean: ## remove what was built, tools included
	rm -rf bin dist .tools .scratch
