#!/usr/bin/env bash
# Installs what the build, the tests and the demo need on a Debian machine that
# has only Go, root and apt. Safe to run again: what is there is left alone, so
# a second run takes a second.
#
# Debian packages go into the system; containerd, its shim, ctr and runc go into
# .cache/bin in this repository and nowhere else.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

containerd_version=v2.4.2
runc_version=v1.5.0
bin=$PWD/.cache/bin
mkdir -p "$bin"

say() { printf 'setup: %s\n' "$*" >&2; }

# gcc and libc6-dev are for the race detector and runc's seccomp binding;
# mmdebstrap makes the test images; erofs-utils has the fsck.erofs that the
# image tests use as a second opinion; QEMU, kmod and mmdebstrap run the lab's
# kernels, whose guests have this machine's programs: dmsetup, e2fsprogs, gdb
# and procps (pgrep) are for their tests; clang has libFuzzer.
packages=(
	ca-certificates gcc libc6-dev make pkg-config libseccomp-dev
	mmdebstrap debian-archive-keyring qemu-system-x86 kmod
	dmsetup e2fsprogs gdb procps
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

# Debian's runc is older but good enough for every test here.
if ! goinstall runc $runc_version -tags seccomp github.com/opencontainers/runc; then
	say "runc $runc_version does not build here, taking Debian's"
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends runc >/dev/null
	ln -sf "$(command -v runc)" "$bin/runc"
fi
