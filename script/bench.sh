#!/usr/bin/env bash
# Measures what docs/benchmarks.md reports and keeps the raw output in
# docs/bench/. Needs root and what script/setup.sh installs; takes about half an
# hour, most of it for the pulls at the end. Run it on a quiet machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p docs/bench

head() {
	echo "command: $*"
	echo "commit: $(git describe --always --dirty)"
	echo "machine: $(nproc) CPUs ($(awk -F': ' '/model name/ { print $2; exit }' /proc/cpuinfo)), Linux $(uname -r), $(go env GOVERSION)"
	echo
}

# keep FILE COMMAND...: the output of a command, under a head that says how it
# was made.
keep() {
	local file=docs/bench/$1
	shift
	echo "== $*" >&2
	{
		head "$*"
		"$@" 2>&1 | grep -v '^time='
	} >"$file.tmp"
	mv "$file.tmp" "$file"
}

# alternate N: the two snapshotters in turn, so that what drifts hits both.
alternate() {
	for _ in $(seq "$1"); do
		for which in daxfs overlayfs; do
			go test ./snapshotter -run '^$' -bench "SecondContainer/$which" -benchtime 400x | grep ns/op
		done
	done
}

script/bench-mkdaxfs.sh 7
keep flatten.txt go test ./convert -run '^$' -bench 'Flatten' -count 10
keep metadata.txt go test ./convert -count 1 -run 'Metadata' -v
keep second-container.txt alternate 8
keep pool.txt go test ./daxmem -run '^$' -bench . -count 5
keep memory.txt go test ./snapshotter -count 1 -run 'OneCopyInPageCache|ImportMemory' -v
keep family.txt go test ./integration -count 1 -run 'TestFamilySharesExtents' -v
script/bench-pull.sh
