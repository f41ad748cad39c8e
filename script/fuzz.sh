#!/usr/bin/env bash
# Runs every fuzz target of the repository for the given time (default 10s).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
time=${1:-10s}

# seconds DURATION: of one unit, as Go writes it.
seconds() {
	case $1 in
	*h) echo $((${1%h} * 3600)) ;;
	*m) echo $((${1%m} * 60)) ;;
	*) echo "${1%s}" ;;
	esac
}

go list -f '{{.Dir}}' ./... | while read -r dir; do
	# go test takes one target at a time.
	for target in $(cd "$dir" && grep -ohs '^func Fuzz[A-Za-z0-9_]*' ./*_test.go | sed 's/func //'); do
		echo "== $target in ${dir#"$PWD"/}"
		(cd "$dir" && go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" . </dev/null)
	done
done

# The parsing core of the kernel module, with libFuzzer. What it learns stays in
# .cache/fuzz, where it also puts an input that breaks the core.
echo "== parsing core in kmod"
cache=$PWD/.cache/fuzz
mkdir -p "$cache/corpus"
make -s -C kmod/fuzz OUT="$cache" fuzz
go run ./kmod/fuzz/seeds "$cache/seeds"
"$cache/fuzz" -max_total_time="$(seconds "$time")" -timeout=10 -max_len=32768 -verbosity=0 -print_final_stats=1 \
	-artifact_prefix="$cache/" "$cache/corpus" "$cache/seeds"
