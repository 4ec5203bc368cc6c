"""The system calls that a job may make: what ordinary programs need, and no way around the sandbox.

As Docker's own profile for a container without capabilities, but also without what that one leaves open
between containers or towards young kernel code: io_uring, address families other than UNIX, IP and netlink
(so neither VSOCK nor the kernel's crypto, AF_ALG), and everything in 32-bit form, whose arguments cannot be
told apart. Key rings, mounts, namespaces, modules, bpf, perf and userfaultfd are not on the list at all. What
is not on it fails with EPERM; calls newer than the list with ENOSYS, which runc sees to.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

_FILES = """
    access faccessat faccessat2 open openat openat2 creat close close_range dup dup2 dup3 fcntl flock ioctl
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek
    sendfile splice tee vmsplice copy_file_range readahead fadvise64 cachestat
    truncate ftruncate fallocate fsync fdatasync sync syncfs sync_file_range
    stat fstat lstat newfstatat statx statfs fstatfs name_to_handle_at
    getcwd chdir fchdir getdents getdents64 mkdir mkdirat rmdir mknod mknodat
    rename renameat renameat2 link linkat symlink symlinkat readlink readlinkat unlink unlinkat
    chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat umask utime utimes futimesat utimensat
    getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat
    listxattr llistxattr flistxattr listxattrat removexattr lremovexattr fremovexattr removexattrat
    inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
    io_setup io_submit io_cancel io_getevents io_pgetevents io_destroy
"""
_WAITING = """
    pipe pipe2 eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime timerfd_gettime
    poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
    futex futex_waitv futex_wait futex_wake futex_requeue
"""
_MEMORY = """
    brk mmap munmap mremap mprotect madvise mincore msync mlock mlock2 mlockall munlock munlockall
    remap_file_pages pkey_alloc pkey_free pkey_mprotect membarrier memfd_create memfd_secret
    map_shadow_stack mseal
"""
_PROCESSES = """
    fork vfork execve execveat exit exit_group wait4 waitid kill tkill tgkill pidfd_open pidfd_send_signal
    getpid getppid gettid getpgid setpgid getpgrp getsid setsid process_mrelease
    getuid geteuid getgid getegid getgroups getresuid getresgid
    setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capget capset
    getrlimit setrlimit prlimit64 getrusage times getpriority setpriority ioprio_get ioprio_set
    sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getattr sched_setattr
    sched_getscheduler sched_setscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval
    getcpu set_tid_address set_robust_list get_robust_list rseq prctl arch_prctl modify_ldt
    process_vm_readv process_vm_writev
    seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
    uname sysinfo getrandom restart_syscall
"""
_SIGNALS = """
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait rt_sigqueueinfo
    rt_tgsigqueueinfo sigaltstack pause
"""
_TIME = """
    time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep alarm getitimer setitimer
    timer_create timer_settime timer_gettime timer_getoverrun timer_delete adjtimex clock_adjtime
"""
_SOCKETS = """
    socketpair bind listen accept accept4 connect shutdown getsockname getpeername getsockopt setsockopt
    sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg
"""
_IPC = """
    shmget shmat shmdt shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl
    mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
"""

FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""Linux, its 32-bit and old-kernel look, and asking which; not the one that turns address randomisation off."""
_NEW_NAMESPACES = 0x7E020000
"""The flags of clone() that make a namespace."""
_PID_BITS = 22
"""Pids are below 4,194,304."""
_ENOSYS = 38


def allowed_calls() -> frozenset[str]:
    """The calls that are allowed whatever their arguments."""
    groups = (_FILES, _WAITING, _MEMORY, _PROCESSES, _SIGNALS, _TIME, _SOCKETS, _IPC)
    return frozenset(" ".join(groups).split())


@cache
def profile() -> str:
    """The profile as Docker takes it, JSON."""
    return json.dumps(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
            ],
            "syscalls": [
                {"names": sorted(allowed_calls()), "action": "SCMP_ACT_ALLOW"},
                *(_allow_if("socket", value) for value in FAMILIES.values()),
                *(_allow_if("personality", value) for value in _PERSONALITIES),
                _allow_if("clone", 0, masked_by=_NEW_NAMESPACES),
                # Tracing (argument 1: whom) is for debuggers; the container's init is none of their business. Bit by
                # bit, since a number is compared in 64 bits and the kernel then takes 32: any pid but 1 is
                # even or has another bit.
                _allow_if("ptrace", 0, masked_by=1, argument=1),
                *(_allow_if("ptrace", 1 << bit, masked_by=1 << bit, argument=1) for bit in range(1, _PID_BITS)),
                # Its flags are in memory, where a filter cannot look: C libraries fall back to clone.
                {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
            ],
        },
        separators=(",", ":"),
    )


def _allow_if(call: str, value: int, *, masked_by: int | None = None, argument: int = 0) -> dict[str, Any]:
    """Allow a call if an argument has this value, or those of its bits that ``masked_by`` names have."""
    if masked_by is None:
        condition: dict[str, Any] = {"value": value, "op": "SCMP_CMP_EQ"}
    else:
        condition = {"value": masked_by, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
    return {"names": [call], "action": "SCMP_ACT_ALLOW", "args": [{"index": argument, **condition}]}
