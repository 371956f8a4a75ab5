# Everything a person types: `make demo` and `make test`. The rest is what these two are made of.

SHELL := /bin/bash
export GOFLAGS ?= -trimpath
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(shell git rev-parse --short HEAD 2>/dev/null)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.8.0
SHIM := github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2
RUNC := github.com/opencontainers/runc
PURE := ./fault/... ./api/... ./client/... ./store/... ./control/... ./compose/... ./internal/... ./cli/...

# What a machine must have beyond Go. gcc and libseccomp are for runc; mmdebstrap makes base images.
BUILD_PACKAGES := gcc libc6-dev libseccomp-dev pkg-config git ca-certificates
RUN_PACKAGES := mmdebstrap debian-archive-keyring iproute2 nftables
VM_PACKAGES := mmdebstrap debian-archive-keyring e2fsprogs qemu-system-x86
TEST_PACKAGES := $(shell . /etc/os-release; [ "$$ID" = debian ] && echo chromium) protobuf-compiler busybox-static procps btrfs-progs openssh-client

.PHONY: conformance docker-load build deps demo demo-stop demo-cluster test check check-generated generate bench bench-sim lab faults chaos power fuzz clean vm help

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

build: ## gantry, gantryd, runc and the shim, in bin/
	@mkdir -p bin
	CGO_ENABLED=0 go build -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...
	CGO_ENABLED=0 go build -tags no_grpc -ldflags '-s -w' -o bin/ $(SHIM)
	CGO_ENABLED=1 go build -ldflags '-s -w -extldflags -static' -tags seccomp,urfave_cli_no_docs,netgo,osusergo -o bin/ $(RUNC)

deps: ## install the distribution's packages that are missing (Debian 12, Ubuntu 24.04)
	@.ci/packages $(BUILD_PACKAGES) $(RUN_PACKAGES)

deps-test: deps
	@.ci/packages $(TEST_PACKAGES)

demo: deps build ## build and start examples/voting; twice changes nothing
	@test/demo/start

demo-stop: ## remove everything that demo made
	@test/demo/stop

test: deps-test build ## all tests
	go vet ./...
	PATH="$(CURDIR)/bin:$$PATH" go test $(TESTFLAGS) $$(go list ./... | grep -v /test/)
	PATH="$(CURDIR)/bin:$$PATH" go test $(TESTFLAGS) -p 1 -timeout 30m ./test/...

check: deps-test build check-generated ## static analysis, known vulnerabilities, generated code
	go vet ./...
	go run $(STATICCHECK) ./...
	go test -race $(PURE)
	go test -count 1 -run 'TestStructure' .
	@out=$$(go run $(GOVULNCHECK) ./... 2>&1); code=$$?; echo "$$out"; \
	 if [ $$code = 1 ] && echo "$$out" | grep -q 'fetching vulnerabilities'; then \
	   echo "check: govulncheck was skipped: its database cannot be reached from here"; \
	 else exit $$code; fi

generate: deps-test ## Go code from api/*.proto
	@rm -rf bin/.generate && mkdir -p bin/.generate
	@go build -o bin/.generate/ google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go
	@mkdir -p $(or $(OUT),api/gen)
	cd api && PATH="$(CURDIR)/bin/.generate:$$PATH" protoc -I . \
	  --go_out=$(abspath $(or $(OUT),api/gen)) --go_opt=module=github.com/gantryd/gantry/api/gen \
	  --connect-go_out=$(abspath $(or $(OUT),api/gen)) --connect-go_opt=module=github.com/gantryd/gantry/api/gen \
	  gantry/v1/*.proto

check-generated:
	@$(MAKE) --no-print-directory generate OUT=bin/.generate/out
	@diff -r -I '^// 	protoc  *v' bin/.generate/out api/gen || \
	  { echo "check: api/gen is not what api/gantry/v1 generates; run: make generate" >&2; exit 1; }

bench: deps build ## the table of doc/benchmarks.md, beside Docker in a throw-away root
	go run ./test/bench $(BENCHFLAGS)

bench-sim: ## a thousand simulated machines on a real server; fails when the goal of 100,000 instances is missed
	go run ./test/sim $(SIMFLAGS)

conformance: deps ## the OCI distribution conformance suite; SUITE is the folder conformance of opencontainers/distribution-spec
	@test -f "$(SUITE)/go.mod" || { echo 'conformance: SUITE is no Go module; give the folder "conformance" of opencontainers/distribution-spec: make conformance SUITE=DIR' >&2; exit 2; }
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && CGO_ENABLED=0 go build -C "$(SUITE)" -o "$$dir/conformance" . && OCI_CONFORMANCE="$$dir/conformance" go test -count 1 -v -run TestConformanceSuite ./registry

docker-load: deps build ## Docker reads our exports and we read its archives, in a throw-away root
	GANTRY_DOCKER=$(or $(CACHE),/var/cache/gantry-bench) go test -count 1 -v -timeout 20m -run TestDockerLoadsExports ./test/bench

lab: deps-test build ## a shell beside a cluster of N machines (default 3) in network namespaces
	@go run ./test/lab/shell -n $(or $(N),3)

faults: deps-test build ## daemons, machines, links, disks and clocks that fail, and versions side by side
	FAULTS=1 go test -count 1 -v -p 1 -timeout 3h $(TESTFLAGS) ./test/cluster ./test/upgrade ./test/e2e ./test/network ./test/compose ./test/demo

chaos: deps-test build ## random faults for MINUTES (default 30); SEED repeats a sequence
	FAULTS=1 SEED=$(SEED) MINUTES=$(or $(MINUTES),30) go test -count 1 -v -timeout 24h -run TestChaos $(TESTFLAGS) ./test/cluster

vm: build ## Gantry on a stock Debian 12 in a virtual machine: systemd, cgroup v2, a restart, a reboot, WireGuard
	@.ci/packages $(VM_PACKAGES)
	@test/vm/run

power: deps-test build ## SIGKILLs (KILLS, 1000), power cuts (CUTS, 200) and leader losses (LEADERS, 200); damaged files, torn writes
	@program=$$(command -v "$${LAZYFS:-lazyfs}") || { echo "power: LazyFS is not there: build github.com/dsrhaslab/lazyfs as its README says (it needs fuse3), and: make power LAZYFS=/path/to/lazyfs" >&2; exit 1; }; \
	 LAZYFS=$$program SEED=$(or $(SEED),1) KILLS=$(or $(KILLS),1000) CUTS=$(or $(CUTS),200) LEADERS=$(or $(LEADERS),200) DAMAGE=$(or $(DAMAGE),3) TORN=$(or $(TORN),30) \
	 go test -count 1 -v -p 1 -timeout 24h -run 'Power|Leader|Damage|Torn|Containers|LazyFS|Volatile' $(TESTFLAGS) ./test/lab ./test/power

demo-cluster: deps build ## examples/voting on three machines, one of which dies
	@go run ./test/demo/cluster

fuzz: ## every fuzz target for FUZZTIME each (default 30s)
	@for pkg in $$(grep -rlE '^func Fuzz' --include=*_test.go . | xargs -r -n1 dirname | sort -u); do \
	   for target in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]*' $$pkg/*_test.go | cut -c6-); do \
	     echo "$$pkg $$target"; go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $${FUZZTIME:-30s} $$pkg || exit 1; \
	   done; done

clean: ## remove what was built
	rm -rf bin
