#!/bin/sh
# A machine's root file system in the folder $1, which has no spaces: Debian with systemd, cloud-init and Docker, as a
# cloud's image has them. About a minute, most of it unpacking.
set -eu
root=$1
# Whoever removes the folder must not find the kernel's files in it.
leave() {
    awk -v under="$root/" 'index($2, under) == 1 { print $2 }' /proc/mounts | sort -r | while read -r at; do umount "$at"; done
}
trap leave EXIT
debootstrap --variant=minbase --include=systemd-sysv,udev,dbus,ca-certificates,iproute2,iptables,kmod,procps,e2fsprogs \
    bookworm "$root"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # nothing starts in there
chmod +x "$root/usr/sbin/policy-rc.d"
cp /etc/resolv.conf "$root/etc/resolv.conf"
# If the machine goes down meanwhile it is all made anew: nothing has to be on the disk.
echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/unsafe-io"
DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$root" \
    apt-get install -y -q --no-install-recommends -o Acquire::Retries=3 cloud-init docker.io
rm -rf "$root"/usr/sbin/policy-rc.d "$root"/etc/resolv.conf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* \
    "$root"/usr/share/doc "$root"/usr/share/man "$root"/usr/share/locale

# What a container is given from outside is not cloud-init's to set up.
cat >"$root/etc/cloud/cloud.cfg.d/99-machine.cfg" <<'EOF'
datasource_list: [NoCloud]
network: {config: disabled}
manage_etc_hosts: false
EOF
# The kernel is the one of whoever runs the tests: its settings and its swap are not touched. What would have been done
# is written down.
for name in sysctl swapoff; do
    path=$(chroot "$root" sh -c "command -v $name")
    printf '#!/bin/sh\necho %s "$@" >>/var/log/kernel-settings\n' "$name" >"$root$path"
done
# Nodes mount file systems from loop devices, which a container's /dev lacks.
{
    echo 'c /dev/loop-control 0660 root disk - 10:237'
    for n in $(seq 0 127); do echo "b /dev/loop$n 0660 root disk - 7:$n"; done
} >"$root/etc/tmpfiles.d/loop.conf"
