#!/usr/bin/env bash
# The whole path on one machine: builds everything, starts a private containerd,
# our daemon and a loopback registry, pulls a Debian image, runs containers from
# it, shows what is mounted and what the pool holds, and removes all of it again.
# Needs root, on Debian. Nothing outside this repository and one temporary
# directory is touched, but for Debian packages that script/setup.sh installs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

title() {
	if [ -t 1 ]; then printf '\n\033[1m# %s\033[0m\n' "$*"; else printf '\n# %s\n' "$*"; fi
}
# Shows a command and runs it.
show() { printf '$ %s\n' "$*"; "$@"; }
quiet() { "$@" >>"$dir/demo.log" 2>&1; }

script/setup.sh
make -s build
tools=.cache/demo-bin
mkdir -p $tools
go build -o $tools/ ./integration/cmd/mkimages ./integration/cmd/registry ./integration/cmd/sweep
CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o $tools/testprog ./integration/testprog

dir=$(mktemp -d /tmp/dxdemo.XXXXXX)
chmod 711 "$dir"
registry_pid=
cleanup() {
	local status=$?
	[ $status = 0 ] || { echo "demo failed; the ends of its logs:" >&2; tail -n 15 "$dir"/*.log >&2; }
	[ -z "$registry_pid" ] || kill "$registry_pid" 2>/dev/null || true
	# Whatever is left of it, mounts included; known by the directory's name.
	LAB_DIR=$dir $tools/sweep </dev/null
	exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

title "A Debian image, and one more that is built on it (made once, kept in .cache)"
$tools/mkimages -dir .cache/images -testprog $tools/testprog debian family0 >"$dir/layouts"
{ read -r debian; read -r family; } <"$dir/layouts"
# Open as long as this runs: the registry goes on to write what is fetched.
mkfifo "$dir/address"
exec 3<>"$dir/address"
$tools/registry "debian=$debian" "family0=$family" >"$dir/address" 2>"$dir/registry.log" &
registry_pid=$!
disown $!
read -r address <&3
echo "served by a registry on $address"

title "Our daemon and a private containerd, configured as in the example files"
here() {
	sed -e "s#/run/containerd-daxfs/containerd-daxfs.sock#$dir/daxfs.sock#" -e "s#/run/containerd/containerd.sock#$dir/c.sock#" \
		-e "s#/var/lib/containerd-daxfs#$dir/daxfs#" "$1"
}
here config.toml.example >"$dir/config.toml"
here containerd-config.toml.example >"$dir/snippet.toml"
cat >"$dir/containerd.toml" <<END
version = 3
imports = ["$dir/snippet.toml"]
root = "$dir/root"
state = "$dir/state"
temp = "$dir/tmp"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.podsandbox.controller.v1.podsandbox"]
[grpc]
  address = "$dir/c.sock"
[ttrpc]
  address = "$dir/c.ttrpc"
[plugins.'io.containerd.transfer.v1.local']
  max_concurrent_unpacks = 4
END
mkdir "$dir/tmp"
export CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1
export PATH=$PWD/bin:$PWD/.cache/bin:$PATH TMPDIR=$dir/tmp
wait_for() { # SOCKET
	for _ in $(seq 200); do [ -S "$1" ] && return; sleep 0.05; done
	echo "$1 does not appear" >&2
	exit 1
}
# disown: bash would report their end in the middle of the output.
start_daemon() {
	"$PWD/bin/containerd-daxfs-grpc" --config "$dir/config.toml" >>"$dir/daxfs.log" 2>&1 &
	daemon_pid=$!
	disown $!
}
start_daemon
wait_for "$dir/daxfs.sock"
"$PWD/.cache/bin/containerd" --config "$dir/containerd.toml" >"$dir/containerd.log" 2>&1 &
disown $!
wait_for "$dir/c.sock"
export CONTAINERD_ADDRESS=$dir/c.sock CONTAINERD_NAMESPACE=${dir##*/}-demo
run=(ctr run --snapshotter daxfs --fifo-dir "$dir/fifo" --runc-root "$dir/runc")
show ctr plugins ls id==daxfs

title "Pull: every layer goes into the pool, every chain becomes one image"
for image in debian family0; do
	printf '$ ctr images pull --plain-http --snapshotter daxfs %s\n' "$address/$image:latest"
	start=$EPOCHREALTIME
	quiet ctr images pull --plain-http --snapshotter daxfs "$address/$image:latest"
	awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "pulled and unpacked in %.1f s\n", b - a }'
done

title "Run"
show "${run[@]}" --rm "$address/debian:latest" first sh -c 'cat /etc/debian_version; grep " / " /proc/mounts'
for c in c1 c2 c3; do
	"${run[@]}" -d "$address/debian:latest" $c sleep 600
done
"${run[@]}" -d "$address/family0:latest" other sleep 600
show ctr tasks ls

title "One mount for each image, whatever runs from it"
show grep " $dir/daxfs/images/" /proc/mounts

title "What the pool holds"
ctl=(daxfsctl --config "$dir/config.toml")
show "${ctl[@]}" pool stat
show "${ctl[@]}" pool ls
show "${ctl[@]}" pool check --data

title "The daemon is killed; containers do not notice"
show kill -9 $daemon_pid
show ctr tasks exec --fifo-dir "$dir/fifo" --exec-id e1 c1 sha256sum /usr/bin/perl
start_daemon
sleep 4 # containerd waits up to three seconds before it dials a proxy again

title "Everything is removed, and the space is given back"
for c in c1 c2 c3 other; do
	quiet ctr tasks kill -s KILL $c || true
	quiet ctr tasks rm -f $c || true
	quiet ctr containers rm $c
done
quiet ctr images rm --sync "$address/debian:latest" "$address/family0:latest"
sleep 2 # space is given back in the background
show "${ctl[@]}" pool stat
if grep " $dir/" /proc/mounts; then
	echo "something is still mounted" >&2
	exit 1
fi
echo "nothing is mounted any more"
