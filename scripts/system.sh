#!/usr/bin/env bash
# What RGrid needs of the machine it runs on: a few packages, and a Docker engine that answers.
#
#   scripts/system.sh install demo|test|boot  the packages that are missing (as root on Debian or Ubuntu; else says which)
#   scripts/system.sh run COMMAND…             COMMAND beside a Docker engine; one that had to be started here ends with it
#
# RGRID_INSTALL=0 forbids installing.
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

engine_answers() {
    command -v docker >/dev/null && docker version --format '{{.Server.Version}}' >/dev/null 2>&1
}

has_init() { [ -d /run/systemd/system ]; }

missing_packages() {  # one a line
    if ! engine_answers; then
        command -v dockerd >/dev/null || echo docker.io
        # From Debian 13 on the command is a package of its own.
        command -v docker >/dev/null || [ -z "$(apt-cache search --names-only '^docker-cli$' 2>/dev/null)" ] || echo docker-cli
        has_init || mountpoint -q /sys/fs/cgroup || command -v cgroupfs-mount >/dev/null || echo cgroupfs-mount
    fi
    command -v iptables >/dev/null || echo iptables
    command -v ip >/dev/null || echo iproute2
    command -v mkfs.ext4 >/dev/null || echo e2fsprogs
    command -v mount >/dev/null || echo mount
    "${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    if [ "$1" = boot ] || [ "$1" = test ]; then
        command -v busybox >/dev/null || echo busybox-static
        command -v debootstrap >/dev/null || echo debootstrap
    fi
    if [ "$1" = test ]; then
        command -v git >/dev/null || echo git
        # The attacks on the sandbox are compiled.
        command -v gcc >/dev/null || echo gcc
        [ -e /usr/include/stdio.h ] || echo libc6-dev
        compgen -G '/usr/lib/postgresql/1[4-7]/bin/initdb' >/dev/null || echo postgresql
        command -v docker-registry >/dev/null || echo docker-registry
    fi
}

install_packages() {
    PATH="$PATH:/usr/sbin:/sbin"
    local missing
    mapfile -t missing < <(missing_packages "$1")
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "${RGRID_INSTALL:-1}" = 0 ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        die "These packages are missing: ${missing[*]}. On Debian or Ubuntu: sudo apt-get install ${missing[*]}"
    fi
    say "Installing ${missing[*]} with apt-get (RGRID_INSTALL=0 forbids it)."
    # Without an init system nobody would stop what a package starts.
    local policy=/usr/sbin/policy-rc.d log
    if has_init || [ -e $policy ]; then
        policy=
    else
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
    fi
    log=$(mktemp)
    # shellcheck disable=SC2064 # both are known now
    trap "rm -f '$log' $policy" EXIT
    export DEBIAN_FRONTEND=noninteractive
    local apt=(apt-get -q -o Acquire::Retries=3)
    if ! { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
        tail -n 5 "$log" >&2
        die "apt-get could not install ${missing[*]}."
    fi
}

ENGINE=
CGROUPS=

start_engine() {
    PATH="$PATH:/usr/sbin:/sbin"
    engine_answers && return 0
    command -v dockerd >/dev/null || die "Docker is missing. On Debian or Ubuntu: sudo apt-get install docker.io iptables"
    [ "$(id -u)" = 0 ] || die "Docker does not answer: start it (sudo systemctl start docker), or join its group (sudo usermod -aG docker $(id -un))."
    if has_init; then
        systemctl start docker || die "Docker does not start: see journalctl -u docker"
        return 0
    fi
    if ! mountpoint -q /sys/fs/cgroup; then
        cgroupfs-mount
        CGROUPS=mounted
    fi
    local log=/var/log/rgrid-dockerd.log
    say "Starting a Docker engine for as long as this takes (its log: $log)."
    # A session of its own: Ctrl-C is for the command, whose containers have to end before their engine does.
    setsid dockerd >"$log" 2>&1 </dev/null &
    ENGINE=$!
    for _ in $(seq 150); do
        engine_answers && return 0
        kill -0 "$ENGINE" 2>/dev/null || break
        sleep 0.2
    done
    die "Docker does not start: $(grep -v 'level=info' "$log" | tail -n 1)"
}

stop_engine() {
    if [ -n "$ENGINE" ]; then
        kill "$ENGINE" 2>/dev/null || true
        wait "$ENGINE" 2>/dev/null || true
        # It leaves the mount of its own network namespace.
        awk '$5 ~ "^/(var/)?run/docker/" { print $5 }' /proc/self/mountinfo | while read -r place; do umount "$place" || true; done
    fi
    [ -z "$CGROUPS" ] || { cgroupfs-umount && umount /sys/fs/cgroup; } || true
}

case "${1:-}" in
install)
    case "${2:-}" in demo | test | boot) install_packages "$2" ;; *) die "usage: $0 install demo|test|boot" ;; esac
    ;;
run)
    shift
    trap stop_engine EXIT
    trap : INT TERM  # the command has them too; its containers end before their engine
    start_engine
    status=0
    "$@" || status=$?
    exit $status
    ;;
*)
    die "usage: $0 install demo|test|boot, or $0 run COMMAND…"
    ;;
esac
