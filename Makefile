# See README.md and CONTRIBUTING.md. Everything below runs on a Debian machine
# with Go; demo, test and bench need root.
.DEFAULT_GOAL := build
.PHONY: build test demo bench fuzz lint clean

COMMANDS := $(notdir $(wildcard cmd/*))
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
LDFLAGS := -X github.com/daxfs/containerd-daxfs/internal/version.version=$(VERSION)

build:
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(COMMANDS:%=./cmd/%)

# What a test may skip elsewhere must run here. One go test run at the end, so
# that its summary is the last thing said.
test:
	script/setup.sh
	go vet ./...
	DAXFS_TEST_REQUIRE=root,containerd,tools script/with-cgroups.sh go test -timeout 25m ./...

demo:
	script/with-cgroups.sh script/demo.sh

bench:
	script/setup.sh
	script/with-cgroups.sh script/bench.sh

# Each fuzz target for FUZZTIME; the seeds run with every test anyway.
FUZZTIME ?= 10s
fuzz:
	script/fuzz.sh $(FUZZTIME)

lint:
	script/lint.sh

clean:
	rm -rf bin .cache
