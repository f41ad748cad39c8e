#!/usr/bin/env bash
# Runs every fuzz target of the repository for the given time (default 10s).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
time=${1:-10s}
go list -f '{{.Dir}}' ./... | while read -r dir; do
	# go test takes one target at a time.
	for target in $(cd "$dir" && grep -ohs '^func Fuzz[A-Za-z0-9_]*' ./*_test.go | sed 's/func //'); do
		echo "== $target in ${dir#"$PWD"/}"
		(cd "$dir" && go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" . </dev/null)
	done
done
