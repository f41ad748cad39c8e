# See README.md and CONTRIBUTING.md. Everything below runs on a Debian machine
# with Go; demo, test and bench need root.
.DEFAULT_GOAL := build
.PHONY: build test lab cri proof demo bench bench-pull fuzz lint clean

COMMANDS := $(notdir $(wildcard cmd/*))
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
LDFLAGS := -X github.com/daxfs/containerd-daxfs/internal/version.version=$(VERSION)

build:
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(COMMANDS:%=./cmd/%)

# What a test may skip elsewhere must run here. The lab's kernels come last, in
# short: "make lab" runs all that they have.
test:
	script/setup.sh
	go vet ./...
	DAXFS_TEST_REQUIRE=root,containerd,tools script/with-cgroups.sh go test -timeout 25m ./...
	DAXFS_TEST_REQUIRE=root,tools,vm go test -short -timeout 25m ./integration/vm/...
	DAXFS_TEST_REQUIRE=root,tools,vm go test -short -run InGuest ./daxmem

# Real kernels in QEMU, several at once on one memory, with our module. Then what
# ends at any moment: daemons, and a guest at each step of the protocol.
lab:
	script/setup.sh
	DAXFS_TEST_REQUIRE=root,tools,vm go test -timeout 150m -v ./integration/vm/...
	DAXFS_TEST_REQUIRE=root,tools,vm go test -timeout 30m -v -run InGuest ./daxmem
	DAXFS_TEST_REQUIRE=root,tools DAXFS_KILLS=1000 go test -timeout 60m -v ./integration/kills

# All of containerd's CRI tests that need no internet, with our snapshotter and differ
# as default, and on overlayfs. Ten minutes, mostly asleep.
cri:
	script/setup.sh
	DAXFS_TEST_CRI=full DAXFS_TEST_REQUIRE=root,containerd,tools script/with-cgroups.sh go test -count=1 -timeout 40m -v ./integration/cri

# What docs/benchmarks.md says of memory, speed and import; takes the machine for half
# an hour. Fails if a target is missed.
proof:
	script/setup.sh
	go run ./integration/vm/proof -check

demo:
	script/with-cgroups.sh script/demo.sh

bench:
	script/setup.sh
	script/with-cgroups.sh script/bench.sh

# The last part of bench alone: pulls, unpacking and starts beside other snapshotters.
# BENCH="-rounds 1" measures less, BENCH='-measure ""' only writes the tables again.
bench-pull:
	script/setup.sh
	script/with-cgroups.sh script/bench-pull.sh $(BENCH)

# Each fuzz target for FUZZTIME; the seeds run with every test anyway.
FUZZTIME ?= 10s
fuzz:
	script/setup.sh
	script/fuzz.sh $(FUZZTIME)

lint:
	script/lint.sh

clean:
	rm -rf bin .cache
