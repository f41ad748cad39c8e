#!/usr/bin/env bash
# Runs a command where cgroups are mounted, which runc insists on. Where they
# are not (a machine without systemd), the command gets a mount namespace of its
# own that has them, so that the machine stays as it is.
set -euo pipefail

if [ "${1-}" != --mount ]; then
	if grep -q ' - cgroup2\? ' /proc/self/mountinfo || [ "$(id -u)" != 0 ]; then
		exec "$@"
	fi
	exec unshare --mount --propagation slave "$0" --mount "$@"
fi
shift
# What is unmounted here goes from namespaces that tests make of this one too, as on
# a machine with systemd: else the kernel would keep it as long as they are there.
mount --make-rshared /

# Controllers that a version 1 hierarchy has taken are not to be had in version
# 2: then all is mounted as distributions did in their "hybrid" time.
root=/sys/fs/cgroup
taken=$(awk '!/^#/ && $2 > 0 { h[$2] = h[$2] ? h[$2] "," $1 : $1 } END { for (i in h) print h[i] }' /proc/cgroups)
if [ -z "$taken" ]; then
	mount -t cgroup2 cgroup2 $root
else
	mount -t tmpfs -o mode=755 cgroup $root
	for controllers in $taken; do
		mkdir "$root/$controllers"
		mount -t cgroup -o "$controllers" cgroup "$root/$controllers"
	done
	mkdir $root/systemd $root/unified
	mount -t cgroup -o none,name=systemd systemd $root/systemd
	mount -t cgroup2 cgroup2 $root/unified
fi
exec "$@"
