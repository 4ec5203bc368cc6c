"""What a hostile job tries from inside one container without a network (SECURITY §1.7), against the real engine
with the agent's own settings. The names S01 and so on are those of that table."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import docker
import pytest

from nodes.agent import sandbox
from nodes.agent.containers import Engine
from nodes.agent.workspace import Workspace
from nodes.protocol import Image, JobLease
from tests.attacks.images import hostile
from tests.conftest import docker_works
from tests.nodes.agent.jobs import MIB, PlainFolders, lease, run, shell

pytestmark = [pytest.mark.docker, pytest.mark.skipif(not docker_works(), reason="needs a Docker engine")]

NODE = "node-attacks"

LOOK_AROUND = r"""
say() { echo "$1 $2"; }
try() { name=$1; shift; if words=$("$@" 2>&1); then say "$name" allowed; else say "$name" "${words##*: }"; fi; }
status() { sed -n "s/^$1:[[:space:]]*//p" /proc/self/status; }

say uid "$(id -u):$(id -g):$(id -G)"
say cap_eff "$(status CapEff)"; say cap_prm "$(status CapPrm)"; say cap_bnd "$(status CapBnd)"
say cap_amb "$(status CapAmb)"; say no_new_privs "$(status NoNewPrivs)"; say seccomp "$(status Seccomp)"
say hostname "$(hostname)"
say pid1 "$(tr '\0' ' ' </proc/1/cmdline | cut -d' ' -f1)"
say processes "$(ls /proc | grep -c '^[0-9]*$')"
say interfaces "$(ls /sys/class/net | tr '\n' ' ')"
say ipv6 "$(cat /proc/net/if_inet6 2>/dev/null | wc -l)"
say connect "$(nc -w 1 1.1.1.1 80 </dev/null 2>&1 | sed 's/.*: //')"
say connect_metadata "$(nc -w 1 169.254.169.254 80 </dev/null 2>&1 | sed 's/.*: //')"
say dns "$(timeout 1 nslookup example.com 2>&1 | grep -c '^Address.*[0-9]$' | head -1)"

for path in / /bin /etc /usr /var /var/tmp /run /home /in /proc /sys /dev/shm/.. ; do
    try "write_$path" sh -c "touch ${path%/}/x"
done
for path in /tmp /out /dev/shm; do try "write_$path" sh -c "touch $path/x"; done
try exec_tmp sh -c 'cp /bin/busybox /tmp/busybox && /tmp/busybox true'
try remount mount -o remount,rw /
try out_replaced sh -c 'rmdir /out || mv /out /out2'

for path in /proc/kcore /proc/keys /proc/timer_list /proc/latency_stats /proc/sched_debug; do
    say "read_$path" "$(head -c 1 $path 2>/dev/null | wc -c)"
done
say firmware "$(ls /sys/firmware 2>/dev/null | wc -l)"
say debugfs "$(ls /sys/kernel/debug 2>/dev/null | wc -l)"
say devices "$(find /dev -type b 2>/dev/null | wc -l)"
for path in /dev/mem /dev/kmsg /dev/port /dev/fuse /dev/kvm /dev/net/tun /dev/loop0 /dev/vda /dev/sda; do
    if [ -e $path ]; then say "exists_$path" yes; else say "exists_$path" no; fi
done
for path in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /proc/sys/vm/swappiness \
    /proc/irq/0 /proc/bus /proc/fs /sys/kernel/uevent_helper /sys/fs/cgroup/release_agent; do
    try "write_$path" sh -c "echo x >$path"
done
try cgroup_write sh -c 'echo 1000000000 >$(ls /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max \
    2>/dev/null | head -1)'
try cgroup_mkdir sh -c 'mkdir $(ls -d /sys/fs/cgroup/memory /sys/fs/cgroup 2>/dev/null | head -1)/x'
say cgroup "$(cut -d: -f3 /proc/self/cgroup | sort -u | tr '\n' ' ')"
say sockets "$(find / -xdev -type s 2>/dev/null | wc -l)"
say docker_socket "$(ls /var/run/docker.sock /run/docker.sock /run/containerd 2>/dev/null | wc -l)"
own='RGRID_JOB_ID RGRID_ATTEMPT RGRID_FUNCTION RGRID_VERSION PATH HOME HOSTNAME PWD SHLVL OLDPWD _'
say other_environ "$(cat /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n' | cut -d= -f1 | sort -u |
    while read name; do case " $own " in *" $name "*) ;; *) echo "$name" ;; esac; done | tr '\n' ' ')"
say volume "$(ls /data | wc -l)"
say volume_size "$(df -k /data | tail -1 | tr -s ' ' | cut -d' ' -f2)"
say health "$(ls /tmp/healthcheck-ran 2>/dev/null | wc -l)"
say leftovers "$(find /tmp /var/tmp /dev/shm /run/lock -type f 2>/dev/null | grep -v '/x$\|/tmp/busybox$' | wc -l)"
say nofile "$(ulimit -n) $(ulimit -Hn)"; say core "$(ulimit -c) $(ulimit -Hc)"; say fsize "$(ulimit -Hf)"
say setuid "$(/bin/probe-as-root | grep euid)"
say capable "$(/bin/capable/cat /proc/self/status 2>/dev/null | sed -n 's/^CapEff:[[:space:]]*//p')"
exit 0
"""

READ_ONLY = "Read-only file system"
DENIED = "Permission denied"
CLOSED = f"{READ_ONLY}|{DENIED}|Operation not permitted|No such file or directory|nonexistent directory|Is a directory"
EXPECTED = {
    "uid": "65532:65532:65532",  # S33: the image says root
    "cap_eff": "0{16}", "cap_prm": "0{16}", "cap_bnd": "0{16}", "cap_amb": "0{16}",  # S32
    "no_new_privs": "1",
    "seccomp": "2",
    "hostname": "job",
    "pid1": "/sbin/docker-init",  # S40
    "processes": "[1-9]",
    "interfaces": "lo ",  # S52
    "ipv6": "[01]",
    "connect": "Network is unreachable",
    "connect_metadata": "Network is unreachable",  # S53
    "dns": "0",  # S59
    "write_/": READ_ONLY, "write_/bin": READ_ONLY, "write_/etc": READ_ONLY, "write_/in": READ_ONLY,  # S15
    "write_/usr": CLOSED, "write_/var": CLOSED, "write_/var/tmp": CLOSED, "write_/run": CLOSED, "write_/home": CLOSED,
    "write_/proc": CLOSED, "write_/sys": READ_ONLY, "write_/dev/shm/..": CLOSED,
    "write_/tmp": "allowed", "write_/out": "allowed", "write_/dev/shm": "allowed",
    "exec_tmp": "allowed",
    "remount": f"{DENIED}.*|.*not permitted.*|.*must be superuser.*|.*are you root.*",
    "out_replaced": f"{CLOSED}|Device or resource busy|.*busy",  # S67
    "read_/proc/kcore": "0", "read_/proc/keys": "0", "read_/proc/timer_list": "0",  # S35
    "read_/proc/latency_stats": "0", "read_/proc/sched_debug": "0",
    "firmware": "0", "debugfs": "0", "devices": "0",
    **{f"exists_{path}": "no" for path in (
        "/dev/mem", "/dev/kmsg", "/dev/port", "/dev/fuse", "/dev/kvm", "/dev/net/tun", "/dev/loop0", "/dev/vda",
        "/dev/sda")},
    **{f"write_{path}": CLOSED for path in (
        "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname",  # S36
        "/proc/sys/vm/swappiness", "/proc/irq/0", "/proc/bus", "/proc/fs", "/sys/kernel/uevent_helper",
        "/sys/fs/cgroup/release_agent")},
    "cgroup_write": CLOSED, "cgroup_mkdir": CLOSED,
    "cgroup": "/ ",  # S38: nothing of the host's tree
    "sockets": "0", "docker_socket": "0",  # S37
    "other_environ": "",  # S39
    "volume": "0", "volume_size": "16384",
    "health": "0",
    "leftovers": "0",  # S42
    "nofile": "1024 1024", "core": "0 0", "fsize": str(32 * 2048),
    "setuid": "euid 65532",  # S31
    "capable": "|0{16}",  # S32: the kernel refuses to run it, or runs it without
}  # fmt: skip

REFUSED = "EPERM|ENOSYS|EACCES|EAFNOSUPPORT"
_REFUSED_CALLS = """mount umount2 pivot_root chroot fsopen open_tree move_mount unshare_user unshare_net clone_user
    clone3 setns bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register keyctl add_key
    request_key kexec_load init_module finit_module delete_module open_by_handle_at reboot swapon swapoff acct
    quotactl settimeofday clock_settime adjtimex sethostname setdomainname syslog vhangup personality fanotify_init
    pidfd_getfd kcmp setuid setgid ptrace ptrace_long socket_packet socket_raw socket_vsock socket_alg socket_tipc
    socket_bluetooth mknod_device mknod_device_out chown_root setpriority"""
CALLS = dict.fromkeys(_REFUSED_CALLS.split(), REFUSED) | {"int80": "SYS", "ptrace_own": "0", "euid": "65532"}
OPEN_WITHOUT_PROFILE = {"unshare_user", "clone_user", "keyctl", "add_key", "personality", "io_uring_enter", "setns"}
"""Calls that a container without the profile gets through with, or that fail for another reason."""


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[Engine]:
    opened = await Engine.open(NODE)
    yield opened
    left = await opened.find()
    for each in left:
        await opened.remove(each.container_id)
    await opened.aclose()
    assert left == []


@pytest.fixture(scope="module")
async def image(engine: Engine) -> str:
    return (await engine.ensure_image(Image(reference=hostile()))).id


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> PlainFolders:
    return PlainFolders.below(tmp_path_factory.mktemp("job"))


@pytest.fixture
async def workspace(tmp_path: Path) -> AsyncIterator[Workspace]:
    made = await Workspace.create(tmp_path, "job_1", 1, 16 * MIB, 65532)
    yield made
    await made.destroy()


def pairs(output: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition(" ") for line in output.splitlines())}


@pytest.fixture(scope="module")
async def seen(engine: Engine, image: str, folders: PlainFolders) -> dict[str, str]:
    """What one container saw of itself and its surroundings."""
    ran = await run(engine, image, shell(LOOK_AROUND), folders)
    assert ran.code == 0, ran.output
    return pairs(ran.output)


@pytest.mark.parametrize("name", EXPECTED)
async def test_a_job_sees_and_reaches_nothing_but_its_own(seen: dict[str, str], name: str) -> None:
    assert re.fullmatch(EXPECTED[name], seen[name]), seen[name]


@pytest.fixture(scope="module")
async def calls(engine: Engine, image: str, folders: PlainFolders) -> dict[str, str]:
    ran = await run(engine, image, lease(["/bin/probe"]), folders)
    assert ran.code == 0, ran.output
    return pairs(ran.output)


@pytest.mark.parametrize("name", CALLS)
async def test_calls_that_lead_out_are_refused(calls: dict[str, str], name: str) -> None:  # S30, S14, S58, S71
    assert re.fullmatch(CALLS[name], calls[name]), calls[name]


def test_the_probe_would_notice_an_open_sandbox(image: str) -> None:
    got = pairs(run_carelessly(image, "/bin/probe", "--security-opt=seccomp=unconfined"))
    assert {name for name in OPEN_WITHOUT_PROFILE if re.fullmatch(REFUSED, got[name])} == set()


def test_a_file_with_a_capability_has_it_where_nothing_forbids_that(image: str) -> None:
    status = run_carelessly(image, "/bin/capable/cat", arguments=["/proc/self/status"])
    assert re.search(r"CapEff:\s*0{12}2000", status)  # S32: CAP_NET_RAW


def run_carelessly(image: str, program: str, *options: str, arguments: Sequence[str] = ()) -> str:
    """What it prints in a container with little of what jobs' containers have; the image's volumes go with it."""
    command = ["docker", "run", "--rm", "--network=none", "--user=65532", *options, f"--entrypoint={program}", image]
    return subprocess.run([*command, *arguments], check=True, capture_output=True, text=True).stdout


# Bombs: (lease fields, script, exit codes, what the output says)
BOMBS: dict[str, tuple[dict[str, Any], str, set[int], str]] = {
    # S01, S03: whatever it forks, and whatever of that daemonises, ends at the limit and with the container.
    "forks": (
        {},
        "i=0; while [ $i -lt 400 ]; do sleep 30 2>/dev/null & i=$((i+1)); done; echo survived",
        {1, 2},
        "Resource temporarily unavailable|can't fork",
    ),
    "kill_all": ({}, "kill -9 -1; echo survived", {0, 137}, ""),  # S40
    "daemons": ({}, "setsid sleep 60 </dev/null >/dev/null 2>&1 & exit 0", {0}, ""),
    # S04
    "orphans": (
        {},
        "i=0; while [ $i -lt 600 ]; do (true & ) ; i=$((i+1)); done; sleep 0.2; ls /proc | grep -c '^[0-9]*$'",
        {0},
        r"^[1-9]\n$",
    ),
    # S08: half of the memory, so that it ends as an error and not as a kill.
    "tmp": (
        {"memory": 32 * MIB, "disk": 64 * MIB},
        "dd if=/dev/zero of=/tmp/fill bs=1M count=40; df -k /tmp | tail -1",
        {0},
        "No space left on device",
    ),
    "tmp_files": (
        {"disk": 4 * MIB},
        "i=0; while [ $i -lt 2000 ]; do : >/tmp/$i || break; i=$((i+1)); done; echo made $i",
        {0, 1, 2},
        "No space left on device",
    ),
    "shm": (
        {"memory": 32 * MIB},
        "dd if=/dev/zero of=/dev/shm/fill bs=1M count=40; echo went on",
        {0},
        "No space left on device",
    ),
    # S20
    "files": (
        {},
        "i=3; while [ $i -lt 2000 ]; do eval \"exec $i</bin/busybox\" || break; i=$((i+1)); done; echo $i",
        {0, 1, 2},
        "Too many open files|Bad file descriptor|Invalid argument",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_hurts_only_itself(engine: Engine, image: str, folders: PlainFolders, name: str) -> None:
    fields, script, codes, words = BOMBS[name]
    neighbour = asyncio.create_task(run(engine, image, shell("echo fine"), folders))
    ran = await run(engine, image, shell(script, **fields), folders)
    assert ran.code in codes, ran
    assert re.search(words, ran.output), ran.output
    assert (await neighbour).output == "fine\n"


async def test_memory_is_the_limit_and_there_is_no_swap(engine: Engine, image: str, folders: PlainFolders) -> None:
    began_s = time.monotonic()
    ran = await run(engine, image, shell("exec tail /dev/zero", memory=48 * MIB), folders)  # S05, S07
    assert ran.exited.oom_killed and ran.code == 137
    assert time.monotonic() - began_s < 10


async def test_a_job_gets_no_more_of_the_processors_than_its_share(
    engine: Engine, image: str, folders: PlainFolders
) -> None:
    spin = "timeout 2 sh -c 'while :; do :; done'"
    ran = await run(engine, image, shell(f"{spin} & {spin} & {spin} & wait; times", cpu=0.5), folders)  # S10
    minutes, seconds = map(float, re.findall(r"(\d+)m([\d.]+)s", ran.output)[2])
    assert minutes * 60 + seconds < 2 * 0.5 * 1.05 + 0.15


async def test_a_full_out_is_an_error_inside_and_costs_the_node_no_more_than_the_quota(
    engine: Engine, image: str, workspace: Workspace
) -> None:
    script = """
    dd if=/dev/zero of=/out/fill bs=1M count=40; rm /out/fill
    fallocate -l 40000000 /out/allocated || echo fallocate refused; rm -f /out/allocated
    i=0; while [ $i -lt 3000 ]; do : >/out/$i || exit; i=$((i+1)); done; echo no limit
    """
    ran = await run(engine, image, shell(script, disk=64 * MIB), workspace)  # S16, S17, S19
    assert ran.output.count("No space left on device") == 3, ran.output


async def test_a_storm_of_synchronous_writes_is_slowed_down_and_no_neighbour_with_it(
    engine: Engine, image: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def writes(seconds: int) -> JobLease:
        return lease(["/bin/probe", "storm", "/out/storm", str(seconds)])

    async def blocks(job: JobLease, files: Workspace) -> int:
        ran = await run(engine, image, job, files)
        assert ran.code == 0, ran
        return int(pairs(ran.output)["blocks"])

    other = await Workspace.create(tmp_path, "job_2", 1, 16 * MIB, 65532)
    try:
        free = await blocks(writes(1), other)
        monkeypatch.setattr(sandbox, "IO_OPS", 40)
        storm = asyncio.create_task(blocks(writes(4), workspace))  # S26
        await asyncio.sleep(0)
        monkeypatch.undo()
        beside = await blocks(writes(1), other)
        assert await storm <= 4 * 40 + 40, "a block takes an operation or more"
        assert min(free, beside) > 2 * 40, (free, beside)
    finally:
        await other.destroy()


async def test_a_crash_leaves_no_core_file(engine: Engine, image: str, folders: PlainFolders) -> None:
    before = set(Path("/").glob("core*"))
    script = "cd /out; ulimit -c unlimited; sh -c 'kill -SEGV $$'; echo $?"
    ran = await run(engine, image, shell(script), folders)  # S25
    assert "139" in ran.output
    assert not list(folders.out_dir.glob("core*"))
    assert set(Path("/").glob("core*")) == before


async def test_output_without_end_is_bounded_by_its_reader(engine: Engine, image: str, folders: PlainFolders) -> None:
    container = await engine.create(shell("exec yes"), image, folders)  # S21
    source = await engine.attach(container)
    await engine.start(container)
    read = 0
    async for chunk in source:
        read += len(chunk)
        if read > 20 * MIB:
            break
    await engine.kill(container)
    assert (await engine.wait(container)).code == 137
    stored = sum(
        file.stat().st_size
        for file in Path(f"/var/lib/docker/containers/{container}").rglob("*")
        if file.is_file()
    )
    await engine.remove(container)
    assert stored < MIB


async def test_a_process_that_stops_itself_is_killed(engine: Engine, image: str, folders: PlainFolders) -> None:
    container = await engine.create(shell("echo ready; kill -STOP $$; echo never"), image, folders)  # S12
    source = await engine.attach(container)
    await engine.start(container)
    assert await anext(source) == b"ready\n"
    await engine.stop(container, 0.5)
    assert (await engine.wait(container)).code == 137
    await engine.remove(container)


async def test_jobs_in_a_row_leave_nothing_and_find_nothing(
    engine: Engine, image: str, folders: PlainFolders
) -> None:
    script = "find /tmp /dev/shm -type f | wc -l; echo mine >/tmp/left; echo mine >/dev/shm/left"
    seen: set[str] = set()
    own: list[str] = []

    async def one() -> None:
        container = await engine.create(shell(script), image, folders)
        own.append(container)
        source = await engine.attach(container)
        await engine.start(container)
        await engine.wait(container)
        seen.add(b"".join([chunk async for chunk in source]).decode().strip())
        await engine.remove(container)

    handles = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):  # S83, two at a time
        await asyncio.gather(one(), one())
    assert seen == {"0"}
    assert await engine.find() == []
    mounts = Path("/proc/self/mountinfo").read_text()
    assert not [container for container in own if container in mounts]
    assert not [container for container in own if Path(f"/var/lib/docker/containers/{container}").exists()]
    assert len(list(Path("/proc/self/fd").iterdir())) <= handles + 2


async def inspected(engine: Engine, image: str, job: JobLease, folders: PlainFolders) -> dict[str, Any]:
    container = await engine.create(job, image, folders)
    client = docker.from_env()
    try:
        await engine.start(container)
        found: dict[str, Any] = client.api.inspect_container(container)
        return found
    finally:
        client.close()
        await engine.kill(container)
        await engine.remove(container)


async def test_every_control_of_the_cis_benchmark_that_applies_is_met(
    engine: Engine, image: str, folders: PlainFolders
) -> None:
    """Section 5 (container runtime), by what Docker says of a running job.

    Not here: 5.2 and parts of 5.1 (SELinux, AppArmor: the machine's), 5.27 (a job has no health to check: it ends),
    5.23, 5.24 and 5.28 (how commands are used).
    """
    found = await inspected(engine, image, shell("sleep 20"), folders)
    host, config = found["HostConfig"], found["Config"]
    mounts = {each["Destination"]: each for each in found["Mounts"]}
    sensitive = ("/", "/boot", "/dev", "/etc", "/lib", "/proc", "/sys", "/usr")
    controls = {
        "5.1 AppArmor is not switched off": found["AppArmorProfile"] != "unconfined",
        "5.3 no capability is added, all are dropped": not host["CapAdd"] and host["CapDrop"] == ["ALL"],
        "5.4 not privileged": host["Privileged"] is False,
        "5.5 no sensitive directory of the host": not [
            each for each in mounts.values() if each["Type"] == "bind" and each["Source"] in sensitive
        ],
        "5.7, 5.8 no port is published": not host["PortBindings"] and not host["PublishAllPorts"],
        "5.9 not the host's network": host["NetworkMode"] == "none",
        "5.10 memory is limited": host["Memory"] == host["MemorySwap"] == 64 * MIB,
        "5.11 processors are limited": host["CpuShares"] > 0 and host["CpuQuota"] > 0,
        "5.12 the root is read-only": host["ReadonlyRootfs"] is True,
        "5.14 no restarts": host["RestartPolicy"]["Name"] in ("", "no"),
        "5.15 not the host's processes": host["PidMode"] == "",
        "5.16 not the host's IPC": host["IpcMode"] == "private",
        "5.17 no device": not host["Devices"] and not host.get("DeviceRequests"),
        "5.18 ulimits are set": {each["Name"] for each in host["Ulimits"]} == {"nofile", "core", "fsize"},
        "5.19 no shared propagation": all(each["Propagation"] in ("rprivate", "") for each in mounts.values()),
        "5.20 not the host's UTS": host["UTSMode"] == "",
        "5.21 a seccomp profile": any(option.startswith("seccomp={") for option in host["SecurityOpt"]),
        "5.24 no cgroup of its own choice": host["CgroupParent"] == "",
        "5.25 no new privileges": any("no-new-privileges" in option for option in host["SecurityOpt"]),
        "5.28 pids are limited": host["PidsLimit"] == 256,
        "5.29 not the default bridge": "bridge" not in found["NetworkSettings"]["Networks"],
        "5.30 not the host's users": host["UsernsMode"] == "",
        "5.31 no Docker socket": not [each for each in mounts.values() if "docker.sock" in each["Source"]],
        "user": config["User"] == "65532:65532",
        "log": host["LogConfig"]["Type"] == "none",
        "init": host["Init"] is True,
        "mounts": set(mounts) >= {"/in", "/out"} and mounts["/in"]["RW"] is False,
    }
    assert [name for name, met in controls.items() if not met] == [], json.dumps(found, indent=1)
