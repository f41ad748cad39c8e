#!/usr/bin/env bash
# gofmt, go vet and golangci-lint, the last built into .cache/bin on first use.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=v2.15.0
bin=$PWD/.cache/bin
bad=$(gofmt -l $(git ls-files --cached --others --exclude-standard '*.go'))
[ -z "$bad" ] || { printf 'gofmt would change:\n%s\n' "$bad" >&2; exit 1; }
go vet ./...
if [ ! -e "$bin/.golangci-lint-$version" ]; then
	GOBIN=$bin go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$version"
	touch "$bin/.golangci-lint-$version"
fi
"$bin/golangci-lint" run
