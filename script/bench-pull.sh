#!/usr/bin/env bash
# The part of "make bench" about pulls, unpacking and starting containers, beside
# other snapshotters: integration/bench, whose flags it takes. Needs root and what
# script/setup.sh installs; run it where cgroups are mounted (script/with-cgroups.sh).
# It takes about twenty minutes on a quiet machine, and as long again when the
# images have to be made first. "-measure ''" writes docs/benchmarks.md again from
# docs/bench without measuring; "-rounds 1" is quick.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# One of the images is an npm tree, made outside of it.
command -v npm >/dev/null || {
	echo "bench-pull: installing npm" >&2
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends npm >/dev/null
}
bin=.cache/bench-bin
mkdir -p $bin
go build -o $bin/ ./integration/bench
exec $bin/bench "$@"
