from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nodes.agent.failures import AttemptFailed
from nodes.agent.sandbox import JobNetwork, LocalImage, container_settings
from nodes.agent.seccomp import allowed_calls, profile
from nodes.protocol import ErrorCode, JobLease
from tests.nodes.agent.jobs import MIB, lease

IMAGE = LocalImage(id="sha256:" + "a" * 64, digest="acme/tool@sha256:" + "b" * 64)
NETWORK = JobNetwork(id="n" * 64, dns=("9.9.9.9",), ipv6=True)


def settings(job: JobLease | None = None, image: LocalImage = IMAGE, network: JobNetwork | None = None) -> Any:
    return container_settings(
        job or lease(["true"]), image, node="n1", in_dir=Path("/w/in"), out_dir=Path("/w/out"), network=network
    )


def image(**fields: Any) -> LocalImage:
    return LocalImage(id=IMAGE.id, digest=IMAGE.digest, **fields)


def test_the_command_is_the_whole_of_argv() -> None:
    made = settings(lease(["ffmpeg", "-i", "a b;c"]))
    assert (made["Entrypoint"], made["Cmd"]) == (["ffmpeg", "-i", "a b;c"], [])


def test_without_a_command_the_image_runs_its_own() -> None:
    made = settings(lease(None))
    assert "Entrypoint" not in made and "Cmd" not in made


def test_the_environment_is_the_leases_and_cannot_take_the_jobs_own_names() -> None:
    made = settings(lease(["true"], job_id="job_1", env={"A": "1=2\n3", "RGRID_JOB_ID": "job_other"}))
    assert sorted(made["Env"]) == [
        "A=1=2\n3",
        "RGRID_ATTEMPT=1",
        "RGRID_FUNCTION=probe",
        "RGRID_JOB_ID=job_1",
        "RGRID_VERSION=3",
    ]


def test_labels_name_node_job_and_attempt() -> None:
    made = settings(lease(["true"], job_id="job_1", attempt=4))
    assert made["Labels"] == {"rgrid.node": "n1", "rgrid.job": "job_1", "rgrid.attempt": "4"}


def test_limits_follow_the_resources() -> None:
    host = settings(lease(["true"], cpu=0.5, memory=64 * MIB, disk=20 * MIB))["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 64 * MIB
    assert (host["CpuPeriod"], host["CpuQuota"], host["CpuShares"]) == (100_000, 50_000, 512)
    assert {each["Name"]: (each["Soft"], each["Hard"]) for each in host["Ulimits"]} == {
        "nofile": (1024, 1024),
        "core": (0, 0),
        "fsize": (20 * MIB, 20 * MIB),
    }


@pytest.mark.parametrize(
    ("memory", "disk", "size"),
    [
        (64 * MIB, 20 * MIB, 20 * MIB),
        (64 * MIB, 200 * MIB, 32 * MIB),  # full before the job's memory is
    ],
)
def test_tmp_is_bounded_by_disk_and_by_half_of_memory(memory: int, disk: int, size: int) -> None:
    options = settings(lease(["true"], memory=memory, disk=disk))["HostConfig"]["Tmpfs"]["/tmp"].split(",")
    assert f"size={size}" in options
    assert {"nosuid", "nodev", "mode=1777"} <= set(options)


def test_a_job_has_no_network_unless_it_asks_for_one() -> None:
    host = settings()["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert "Dns" not in host


def test_a_network_comes_with_named_resolvers_and_without_ipv6() -> None:
    host = settings(lease(["true"], network=True), network=NETWORK)["HostConfig"]
    assert (host["NetworkMode"], host["Dns"], host["DnsSearch"]) == (NETWORK.id, ["9.9.9.9"], ["."])
    assert host["Sysctls"]["net.ipv6.conf.all.disable_ipv6"] == "1"


@pytest.mark.parametrize("wanted", [True, False])
def test_a_network_and_a_lease_that_do_not_agree_are_a_bug(wanted: bool) -> None:
    with pytest.raises(ValueError, match="network"):
        settings(lease(["true"], network=wanted), network=None if wanted else NETWORK)


@pytest.mark.parametrize("user", [0, -1])
def test_no_job_runs_as_root(user: int) -> None:
    with pytest.raises(AttemptFailed) as failed:
        settings(lease(["true"], user=user))
    assert not failed.value.retryable


@pytest.mark.parametrize(
    "unusable",
    [
        image(working_dir="/proc/self/fd/7"),
        image(working_dir="/usr/../proc/self"),
        image(working_dir="proc"),
        image(working_dir="//proc"),
        image(volumes=("/",)),
        image(volumes=("/proc/sys",)),
        image(volumes=("/dev/../sys",)),
        image(volumes=("/out/below",)),
        image(volumes=("/in/x",)),
        image(volumes=tuple(f"/v{n}" for n in range(33))),
    ],
)
def test_an_image_that_reaches_where_it_must_not_is_refused(unusable: LocalImage) -> None:
    with pytest.raises(AttemptFailed) as failed:
        settings(image=unusable)
    assert failed.value.code is ErrorCode.IMAGE_PULL_FAILED
    assert not failed.value.retryable


def test_an_image_without_a_command_needs_one_from_the_manifest() -> None:
    with pytest.raises(AttemptFailed, match=r"spec\.job\.command"):
        settings(lease(None), image(has_command=False))
    settings(lease(["true"]), image(has_command=False))


def test_volumes_of_an_image_become_small_tmpfs() -> None:
    mounts = settings(image=image(volumes=("/data", "/tmp", "/out", "/srv/../data/")))["HostConfig"]["Mounts"]
    assert [(each["Type"], each["Target"]) for each in mounts] == [
        ("bind", "/in"),
        ("bind", "/out"),
        ("tmpfs", "/data"),
    ]
    assert mounts[0]["ReadOnly"] and not mounts[1]["ReadOnly"]
    assert mounts[2]["TmpfsOptions"]["SizeBytes"] == 16 * MIB


def test_the_profile_is_in_every_container_and_lists_what_is_allowed() -> None:
    option = settings()["HostConfig"]["SecurityOpt"][1]
    assert option == f"seccomp={profile()}"
    rules = json.loads(profile())
    assert rules["defaultAction"] == "SCMP_ACT_ERRNO"
    assert [each["subArchitectures"] for each in rules["archMap"]] == [[], []]


LEADING_OUT = """io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key mount umount2 unshare setns
    bpf perf_event_open userfaultfd kexec_load init_module finit_module delete_module open_by_handle_at reboot swapon
    pivot_root chroot clone3 socket clone personality syslog acct quotactl settimeofday clock_settime
    pidfd_getfd kcmp fsopen move_mount open_tree lookup_dcookie fanotify_init ptrace"""


@pytest.mark.parametrize("call", LEADING_OUT.split())
def test_no_call_that_leads_out_is_allowed_whatever_its_arguments(call: str) -> None:
    assert call not in allowed_calls()
