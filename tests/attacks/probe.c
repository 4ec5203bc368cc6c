/* What a hostile job tries: each line is a name and what the kernel said (0, or the error's name).
 * Calls that would do harm if they were allowed get arguments that fail later (EINVAL, EFAULT, EBADF). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/timex.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void say(const char *name, long result) {
    printf("%s %s\n", name, result < 0 ? strerrorname_np(errno) : "0");
    fflush(stdout);
}

#define TRY(name, call) do { errno = 0; say(name, (call)); } while (0)
#define RAW(name, ...) TRY(#name, syscall(__NR_##name, __VA_ARGS__))

/* In a child: it may be killed, or end up somewhere else if it is allowed. */
static void in_child(const char *name, long (*call)(void)) {
    pid_t child = fork();
    if (child == 0) {
        errno = 0;
        say(name, call());
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status)) printf("%s %s\n", name, sigabbrev_np(WTERMSIG(status)));
}

static long new_user(void) { return unshare(CLONE_NEWUSER); }
static long new_network(void) { return unshare(CLONE_NEWNET); }
static long clone_user(void) { return syscall(__NR_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0); }
static long traced(void) { return ptrace(PTRACE_TRACEME, 0, 0, 0); }
static long old_calls(void) {
#ifdef __x86_64__
    long result = 20; /* getpid, as a 32-bit program would call it */
    __asm__ volatile("int $0x80" : "+a"(result) : : "memory");
    return result;
#else
    raise(SIGSYS);
    return -1;
#endif
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

/* Blocks written to the disk itself within so many seconds, one by one. */
static int storm(const char *path, double seconds) {
    static char block[4096];
    int file = open(path, O_CREAT | O_WRONLY | O_SYNC, 0644), count = 0;
    for (double end = now() + seconds; now() < end; count++)
        if (pwrite(file, block, sizeof block, (count % 64) * sizeof block) < 0) return 1;
    printf("blocks %d\n", count);
    return 0;
}

/* Datagrams sent within so many seconds, as fast as can be. */
static int flood(const char *address, double seconds) {
    static char data[1400];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
    inet_pton(AF_INET, address, &to.sin_addr);
    int out = socket(AF_INET, SOCK_DGRAM, 0);
    long sent = 0;
    for (double end = now() + seconds; now() < end;)
        if (sendto(out, data, sizeof data, 0, (struct sockaddr *)&to, sizeof to) > 0) sent += sizeof data;
    printf("sent %ld\n", sent);
    return 0;
}

int main(int count, char **words) {
    if (count == 4 && !strcmp(words[1], "storm")) return storm(words[2], atof(words[3]));
    if (count == 4 && !strcmp(words[1], "flood")) return flood(words[2], atof(words[3]));
    struct timex clock = {.modes = ADJ_OFFSET};
    struct timespec second = {1, 0};
    char name[] = "x";

    RAW(mount, "none", "/tmp", "tmpfs", 0, 0);
    RAW(umount2, "/tmp", 0);
    RAW(pivot_root, "/tmp", "/tmp");
    RAW(chroot, "/tmp");
    RAW(fsopen, "tmpfs", 0);
    RAW(open_tree, -1, "/", 0);
    RAW(move_mount, -1, "", -1, "", 0);
    in_child("unshare_user", new_user);
    in_child("unshare_net", new_network);
    in_child("clone_user", clone_user);
    RAW(clone3, 0, 0);
    RAW(setns, -1, 0);
    RAW(bpf, 0, 0, 0);
    RAW(perf_event_open, 0, 0, -1, -1, 0);
    RAW(userfaultfd, 0);
    RAW(io_uring_setup, 1, 0);
    RAW(io_uring_enter, -1, 0, 0, 0, 0, 0);
    RAW(io_uring_register, -1, 0, 0, 0);
    RAW(keyctl, 0, -3, 0, 0, 0);
    RAW(add_key, "user", "rgrid", name, 1, -3);
    RAW(request_key, "user", "rgrid", 0, -3);
    RAW(kexec_load, 0, 0, 0, 0);
    RAW(init_module, 0, 0, "");
    RAW(finit_module, -1, "", 0);
    RAW(delete_module, "rgrid-none", 0);
    RAW(open_by_handle_at, -1, 0, 0);
    RAW(reboot, 0, 0, 0, 0);
    RAW(swapon, "/none", 0);
    RAW(swapoff, "/none");
    RAW(acct, "/none");
    RAW(quotactl, 0, 0, 0, 0);
    RAW(settimeofday, &second, 0);
    RAW(clock_settime, 0, &second);
    RAW(adjtimex, &clock);
    RAW(sethostname, name, 1);
    RAW(setdomainname, name, 1);
    RAW(syslog, 3, 0, 0);
    RAW(vhangup, 0);
    RAW(personality, 0x0040000); /* ADDR_NO_RANDOMIZE */
    RAW(fanotify_init, 0, 0);
    RAW(pidfd_getfd, -1, 0, 0);
    RAW(kcmp, 1, 1, 0, 0, 0);
    RAW(setuid, 0);
    RAW(setgid, 0);
    RAW(ptrace, PTRACE_ATTACH, 1, 0, 0);
    TRY("ptrace_long", syscall(__NR_ptrace, PTRACE_ATTACH, 0x100000001, 0, 0));
    in_child("ptrace_own", traced);
    TRY("socket_packet", socket(AF_PACKET, SOCK_RAW, 0));
    TRY("socket_raw", socket(AF_INET, SOCK_RAW, 1));
    TRY("socket_vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
    TRY("socket_alg", socket(AF_ALG, SOCK_SEQPACKET, 0));
    TRY("socket_tipc", socket(AF_TIPC, SOCK_STREAM, 0));
    TRY("socket_bluetooth", socket(AF_BLUETOOTH, SOCK_RAW, 0));
    TRY("mknod_device", mknod("/tmp/disk", S_IFBLK | 0600, makedev(8, 0)));
    TRY("mknod_device_out", mknod("/out/disk", S_IFCHR | 0600, makedev(1, 1)));
    TRY("chown_root", chown("/tmp", 0, 0));
    TRY("setpriority", nice(-10) == -1 ? -1 : 0);
    in_child("int80", old_calls);
    printf("euid %d\n", geteuid());
    return 0;
}
