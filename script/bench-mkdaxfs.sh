#!/usr/bin/env bash
# Compares mkdaxfs with mkfs.erofs and tar on one tree, everything in tmpfs:
#
#   script/bench-mkdaxfs.sh [RUNS [DIR...]]
#
# DIRs are relative to / (default: usr/bin, usr/share and usr/lib/python3*).
# Each round runs every program once, so that a busy machine hits all of them.
# Raw numbers and medians go to docs/bench/mkdaxfs.txt and to the terminal.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs=${1:-7}
shift || true
if [ $# -gt 0 ]; then
	dirs=("$@")
else
	dirs=(usr/bin usr/share)
	for d in /usr/lib/python3*; do dirs+=("${d#/}"); done
fi
command -v mkfs.erofs >/dev/null || { echo "bench-mkdaxfs: mkfs.erofs is missing (Debian package erofs-utils)" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "bench-mkdaxfs: needs root, to unpack with owners" >&2; exit 1; }

work=$(mktemp -d /dev/shm/bench-mkdaxfs.XXXXXX)
trap 'rm -rf "$work"' EXIT
mkdir -p docs/bench
out=docs/bench/mkdaxfs.txt

go build -o "$work/mkdaxfs" ./cmd/mkdaxfs
tar -C / -cf "$work/t.tar" "${dirs[@]}" 2>/dev/null
mkdir "$work/tree"
tar -C "$work/tree" -xf "$work/t.tar"
gzip -1 -c "$work/t.tar" >"$work/t.tar.gz"
bytes=$(stat -c %s "$work/t.tar")

# run NAME COMMAND...: what the command writes to $work/o is removed outside of
# the time taken.
run() {
	local name=$1 start end
	shift
	rm -rf "$work/o"
	start=${EPOCHREALTIME/./}
	"$@" >/dev/null
	end=${EPOCHREALTIME/./}
	printf '%s %d\n' "$name" $(((end - start) / 1000)) >>"$work/raw"
}
untar() { mkdir "$work/o" && tar -C "$work/o" -xf "$work/t.tar"; }

for _ in $(seq "$runs"); do
	run mkdaxfs-tar "$work/mkdaxfs" --quiet --tar "$work/t.tar" -o "$work/o"
	run mkdaxfs-dir "$work/mkdaxfs" --quiet -d "$work/tree" -o "$work/o"
	run mkdaxfs-gzip "$work/mkdaxfs" --quiet --tar "$work/t.tar.gz" -o "$work/o"
	run mkfs.erofs mkfs.erofs --quiet "$work/o" "$work/tree"
	run tar-x untar
	run cp-tar cp --reflink=never "$work/t.tar" "$work/o"
done

median() { awk -v n="$1" '$1 == n { print $2 }' "$work/raw" | sort -n | awk '{ v[NR] = $1 } END { print (v[int((NR + 1) / 2)] + v[int((NR + 2) / 2)]) / 2 }'; }
erofs=$(median mkfs.erofs)
{
	echo "command: script/bench-mkdaxfs.sh $runs ${dirs[*]}"
	echo "commit: $(git rev-parse --short HEAD)$(git diff --quiet HEAD -- || echo ' and changes')"
	echo "machine: $(nproc) CPUs ($(awk -F': ' '/model name/ { print $2; exit }' /proc/cpuinfo)), Linux $(uname -r), $(go version | cut -d' ' -f3)"
	echo "peers: erofs-utils $(dpkg-query -W -f='${Version}' erofs-utils 2>/dev/null || echo '?'), $(tar --version | head -1)"
	echo "tree: $(find "$work/tree" | wc -l) files and directories, $(find "$work/tree" -type f -size -9 | wc -l) files up to 4 KiB, tar of $bytes bytes, all in tmpfs"
	echo
	echo "milliseconds of each round:"
	for n in $(awk '!seen[$1]++ { print $1 }' "$work/raw"); do
		echo "  $n:$(awk -v n="$n" '$1 == n { printf " %s", $2 }' "$work/raw")"
	done
	echo
	printf '%-14s %10s %10s %22s\n' what 'median ms' 'MB/s' 'speed of mkfs.erofs ×'
	for n in $(awk '!seen[$1]++ { print $1 }' "$work/raw"); do
		median "$n" | awk -v n="$n" -v b="$bytes" -v e="$erofs" '{ printf "%-14s %10d %10d %22.2f\n", n, $1, b / $1 / 1000, e / $1 }'
	done
} | tee "$out"
