#!/usr/bin/env bash
# Installs what the build, the tests and the demo need on a Debian machine that
# has only Go, root and apt. Safe to run again: what is there is left alone, so
# a second run takes a second.
#
# Debian packages go into the system; containerd, its shim, ctr, runc, CNI plugins
# and containerd's CRI tests go into .cache/bin in this repository and nowhere else.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

containerd_version=v2.4.2
runc_version=v1.5.0
cni_version=v1.9.1
bin=$PWD/.cache/bin
mkdir -p "$bin"

say() { printf 'setup: %s\n' "$*" >&2; }

# gcc and libc6-dev are for the race detector and runc's seccomp binding;
# mmdebstrap makes the test images; erofs-utils has the fsck.erofs that the
# image tests use as a second opinion; QEMU, kmod and mmdebstrap run the lab's
# kernels, whose guests have this machine's programs: dmsetup, e2fsprogs, gdb
# and procps (pgrep, pkill) are for their tests; clang has libFuzzer. containerd's
# CRI tests look at shims with lsof and strace, in images of busybox.
packages=(
	ca-certificates gcc libc6-dev make pkg-config libseccomp-dev
	mmdebstrap debian-archive-keyring qemu-system-x86 kmod
	dmsetup e2fsprogs gdb procps
	busybox-static iproute2 lsof strace
	erofs-utils attr acl libcap2-bin zstd mount util-linux
	clang-14 libclang-rt-14-dev
)

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing=()
for p in "${packages[@]}"; do
	installed "$p" || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
	if [ "$(id -u)" != 0 ]; then
		say "not root and these Debian packages are missing: ${missing[*]}"
		exit 1
	fi
	say "installing ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

command -v go >/dev/null || { say "go is not in PATH"; exit 1; }

# goinstall NAME VERSION FLAGS... PACKAGE: install PACKAGE@VERSION once. The
# stamp carries the version, so a new version is built anew.
goinstall() {
	local name=$1 version=$2
	shift 2
	local stamp=$bin/.$name-$version
	[ -e "$stamp" ] && [ -x "$bin/$name" ] && return
	say "building $name $version"
	# "|| return": errexit is off inside an "if goinstall".
	GOBIN=$bin go install "${@:1:$#-1}" "${!#}@$version" || return
	rm -f "$bin/.$name"-*
	touch "$stamp"
}

for cmd in containerd ctr containerd-shim-runc-v2; do
	goinstall $cmd $containerd_version github.com/containerd/containerd/v2/cmd/$cmd
done

# containerd's tests of its Kubernetes interface, the shim and the CNI plugin
# with failures to order that they use, and networks for their pods.
for cmd in containerd-shim-runc-fp-v1 cni-bridge-fp; do
	goinstall $cmd $containerd_version github.com/containerd/containerd/v2/integration/failpoint/cmd/$cmd
done
for plugin in main/bridge main/loopback ipam/host-local; do
	goinstall ${plugin#*/} $cni_version github.com/containernetworking/plugins/plugins/$plugin
done
# The CRI tests are built in containerd's module, with the dependencies that it was
# released with. They name overlayfs in three places; we take the environment's
# snapshotter there, as ctr does.
criversion=$containerd_version-1
stamp=$bin/.cri-integration.test-$criversion
if ! [ -e "$stamp" ] || ! [ -x "$bin/cri-integration.test" ]; then
	say "building containerd's CRI tests $containerd_version"
	module=$(go mod download -json github.com/containerd/containerd/v2@$containerd_version |
		sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
	tmp=$(mktemp -d)
	trap 'rm -rf "$tmp"' EXIT
	cp -r "$module/." "$tmp"
	chmod -R u+w "$tmp"
	sed -i 's/SnapshotService("overlayfs")/SnapshotService(os.Getenv("CONTAINERD_SNAPSHOTTER"))/' "$tmp"/integration/image_volume_linux_test.go
	go -C "$tmp" test -c -o "$bin/cri-integration.test" ./integration
	rm -rf "$tmp" "$bin/.cri-integration.test"-*
	touch "$stamp"
fi

# Debian's runc is older but good enough for every test here.
if ! goinstall runc $runc_version -tags seccomp github.com/opencontainers/runc; then
	say "runc $runc_version does not build here, taking Debian's"
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends runc >/dev/null
	ln -sf "$(command -v runc)" "$bin/runc"
fi
