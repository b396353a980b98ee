/* Runs one untrusted program on many inputs under limits, from inside the sandbox.
 *
 * rewards/grader/runner.py compiles this file once and builds its command line; it explains every option. In short:
 *
 *     runner out=FD in=FD proc=FD tests=0,3 cpu=MS wall=MS idle=MS as=BYTES fsize=BYTES stop=N filter=run|compile
 *            [ro=PATH...] [rw=PATH...] -- PROGRAM ARGS...
 *
 * For each test the input is `<n>.in` of the folder `in`, the output goes to `<n>.out` of the folder `out`; an argument
 * that ends in "@.suffix" gets the test's number there. Without `tests=` the program runs once, with no input, and both its
 * streams go to `messages`. One line per run is written to `results`:
 *
 *     <test> <how it ended> <exit code, signal or errno> <CPU microseconds> <peak resident kilobytes> <wall microseconds>
 *
 * The folders arrive as file descriptors that are closed when the program starts, so that nothing in the sandbox
 * is writable by name. The seccomp filter is written by hand, not made by libseccomp, because it must contain the
 * process's own number (a program may signal itself and nobody else), and this keeps it free of a run-time library.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define COUNT(a) (sizeof(a) / sizeof *(a))
#define MAX_PATHS 32
#define MAX_ARGS 64
#define KEPT_ERRORS 4096
#define TICK_MS 100        /* how often a quiet program is looked at */
#define PROGRESS_NS 1000000 /* less CPU time than this within `idle` milliseconds is idleness */

/* The options, all plain numbers. */
static long long cpu_ms = 2000, wall_ms = 30000, idle_ms = 3000, as_bytes = 0, fsize_bytes = 1 << 24, stop_after = 2;
static int in_dir = -1, out_dir = -1, proc_dir = -1, run_filter = 1, with_seccomp = 1;
static const char *tests = NULL, *read_paths[MAX_PATHS], *write_paths[MAX_PATHS];
static int n_read = 0, n_write = 0;
static FILE *results;
static volatile int child_error; /* errno of the child before its exec; shared with it by vfork */

static void die(const char *what) {
    fprintf(stderr, "runner: %s: %s\n", what, strerror(errno));
    exit(2);
}

/* ---------------------------------------------------------------- seccomp */

#if defined(__x86_64__)
#define NATIVE_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define NATIVE_ARCH AUDIT_ARCH_AARCH64
#else
#error "the seccomp filter knows x86-64 and arm64 only"
#endif
#define LAST_KNOWN_CALL 462 /* newer calls do not exist for the program (ENOSYS), so libraries fall back */

/* Denied with EPERM while compiling and while running: other processes, networks, mounts, kernel objects that
 * outlive the process or escape its limits, and the machine itself. */
static const int denied_always[] = {
    SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_kcmp, SYS_pidfd_open, SYS_pidfd_send_signal, 438,
    /* 438: pidfd_getfd, 425-427: io_uring, 428-433: the new mount calls, 440: process_madvise, 442: mount_setattr,
     * 447: memfd_secret, 448: process_mrelease; older headers lack the names, the numbers are common to all machines */
    425, 426, 427, 428, 429, 430, 431, 432, 433, 440, 442, 447, 448,
    SYS_socket, SYS_socketpair, SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot, SYS_setns, SYS_unshare,
    SYS_memfd_create, SYS_bpf, SYS_perf_event_open, SYS_userfaultfd, SYS_keyctl, SYS_add_key, SYS_request_key,
    SYS_shmget, SYS_shmat, SYS_shmctl, SYS_semget, SYS_semop, SYS_semctl, SYS_msgget, SYS_msgsnd, SYS_msgrcv, SYS_msgctl,
    SYS_mq_open, SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_kexec_load, SYS_reboot, SYS_swapon,
    SYS_swapoff, SYS_syslog, SYS_quotactl, SYS_acct, SYS_settimeofday, SYS_adjtimex, SYS_clock_settime,
    SYS_clock_adjtime, SYS_sethostname, SYS_setdomainname, SYS_name_to_handle_at, SYS_open_by_handle_at,
    SYS_fanotify_init, SYS_personality, SYS_setpriority, SYS_sched_setscheduler, SYS_sched_setparam, SYS_sched_setattr,
    SYS_ioprio_set, SYS_migrate_pages, SYS_move_pages, SYS_lookup_dcookie,
#if defined(__x86_64__)
    SYS_iopl, SYS_ioperm, SYS_modify_ldt,
#endif
};

/* Denied besides, while running: new processes, signals in every form but the ones handled in `build_filter`, and
 * changes to a file's rights, owner, attributes and times: its input is read by other programs, too, and its output by
 * the grader. 452: fchmodat2. */
static const int denied_running[] = {
#if defined(__x86_64__)
    SYS_fork, SYS_vfork, SYS_chmod, SYS_chown, SYS_lchown, SYS_utime, SYS_utimes, SYS_futimesat,
#endif
    SYS_tkill, SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo,
    SYS_fchmod, SYS_fchmodat, 452, SYS_fchown, SYS_fchownat, SYS_utimensat,
    SYS_setxattr, SYS_lsetxattr, SYS_fsetxattr, SYS_removexattr, SYS_lremovexattr, SYS_fremovexattr,
};

static struct sock_filter filter[512];
static unsigned short filter_length;
static int own_pid_at[3]; /* where in the filter the program's own number belongs */

static void add(uint16_t code, uint32_t k, uint8_t jt, uint8_t jf) {
    if (filter_length == COUNT(filter)) exit(2);
    filter[filter_length++] = (struct sock_filter){code, jt, jf, k};
}

static void add_return(uint32_t action) { add(BPF_RET | BPF_K, action, 0, 0); }
static void add_load(size_t offset) { add(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset, 0, 0); }
/* The next `skip` instructions run only when the loaded value equals k. */
static void add_unless_equal_skip(uint32_t k, uint8_t skip) { add(BPF_JMP | BPF_JEQ | BPF_K, k, 0, skip); }

#define ARGUMENT(n) (offsetof(struct seccomp_data, args) + 8 * (n)) /* its low half: both machines are little-endian */
#define NOT_PERMITTED (SECCOMP_RET_ERRNO | EPERM)
#define NO_SUCH_CALL (SECCOMP_RET_ERRNO | ENOSYS)

static void build_filter(void) {
    add_load(offsetof(struct seccomp_data, arch));
    add(BPF_JMP | BPF_JEQ | BPF_K, NATIVE_ARCH, 1, 0);
    add_return(SECCOMP_RET_KILL_PROCESS);
    add_load(offsetof(struct seccomp_data, nr));
    add(BPF_JMP | BPF_JGT | BPF_K, LAST_KNOWN_CALL, 0, 1); /* also the x32 calls */
    add_return(NO_SUCH_CALL);
    for (size_t i = 0; i < COUNT(denied_always); i++) {
        add_unless_equal_skip(denied_always[i], 1);
        add_return(NOT_PERMITTED);
    }
    if (run_filter) {
        for (size_t i = 0; i < COUNT(denied_running); i++) {
            add_unless_equal_skip(denied_running[i], 1);
            add_return(NOT_PERMITTED);
        }
        add_unless_equal_skip(435, 1); /* clone3 keeps its flags in memory; without it glibc uses clone */
        add_return(NO_SUCH_CALL);
        add_unless_equal_skip(SYS_clone, 4); /* threads yes, processes no */
        add_load(ARGUMENT(0));
        add(BPF_JMP | BPF_JSET | BPF_K, CLONE_THREAD, 0, 1);
        add_return(SECCOMP_RET_ALLOW);
        add_return(NOT_PERMITTED);
        const int self_only[][2] = {{SYS_kill, 1}, {SYS_tgkill, 2}}; /* {call, argument with the signal} */
        for (size_t i = 0; i < COUNT(self_only); i++) {
            add_unless_equal_skip(self_only[i][0], 6);
            add_load(ARGUMENT(0));
            own_pid_at[i] = filter_length;
            add_unless_equal_skip(0, 3);
            add_load(ARGUMENT(self_only[i][1])); /* not SIGKILL: that one means the kernel or the runner */
            add(BPF_JMP | BPF_JEQ | BPF_K, SIGKILL, 1, 0);
            add_return(SECCOMP_RET_ALLOW);
            add_return(NOT_PERMITTED);
        }
    }
    add_unless_equal_skip(SYS_prlimit64, 5); /* another process of the same user must keep its limits */
    add_load(ARGUMENT(0));
    add(BPF_JMP | BPF_JEQ | BPF_K, 0, 2, 0);
    own_pid_at[2] = filter_length;
    add(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0);
    add_return(NOT_PERMITTED);
    add_return(SECCOMP_RET_ALLOW);
    add_return(SECCOMP_RET_ALLOW);
}

/* ---------------------------------------------------------------- landlock (tier B) */

struct ruleset_v6 {
    uint64_t access_fs, access_net, scoped;
};
struct path_rule {
    uint64_t access;
    int32_t fd;
} __attribute__((packed));

#define LANDLOCK_READ ((1 << 0) | (1 << 2) | (1 << 3)) /* execute, read a file, read a folder */
static int ruleset = -1;

static long landlock_abi(void) { return syscall(444, NULL, 0, 1); }

static void landlock_allow(const char *path, uint64_t access) {
    struct stat info;
    struct path_rule rule = {access, open(path, O_PATH | O_CLOEXEC)};
    if (rule.fd < 0 || fstat(rule.fd, &info)) die(path);
    if (!S_ISDIR(info.st_mode)) rule.access &= (1 << 0) | (1 << 1) | (1 << 2) | (1 << 14); /* what a file can have */
    if (syscall(445, ruleset, 1, &rule, 0)) die("landlock_add_rule");
    close(rule.fd);
}

static void build_landlock(void) {
    long abi = landlock_abi();
    if (abi < 3) die("landlock");
    uint64_t all = (1 << 15) - 1; /* all of ABI 3 */
    if (abi >= 5) all |= 1 << 15; /* ioctl on devices */
    struct ruleset_v6 rules = {all, abi >= 4 ? 3 : 0, abi >= 6 ? 3 : 0};
    ruleset = (int)syscall(444, &rules, abi >= 6 ? 24 : abi >= 4 ? 16 : 8, 0);
    if (ruleset < 0) die("landlock_create_ruleset");
    for (int i = 0; i < n_read; i++) landlock_allow(read_paths[i], LANDLOCK_READ);
    for (int i = 0; i < n_write; i++) landlock_allow(write_paths[i], all);
}

/* ---------------------------------------------------------------- one run */

static int limit(int resource, rlim_t value) {
    struct rlimit now, wanted = {value, value};
    if (getrlimit(resource, &now)) return -1;
    if (resource == RLIMIT_CPU) wanted.rlim_max++; /* SIGXCPU at the soft limit, which SIGKILL would hide */
    if (now.rlim_max < wanted.rlim_max) wanted.rlim_max = now.rlim_max;
    if (now.rlim_max < value) wanted.rlim_cur = now.rlim_max;
    return setrlimit(resource, &wanted);
}

static int drop_capabilities(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
    for (int capability = 0; capability <= 63; capability++) prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
    return (int)syscall(SYS_capset, &header, none);
}

/* In the child of a vfork: system calls only, until exec. */
static void child(char **argv, int input, int output, int errors) {
    signal(SIGPIPE, SIG_DFL);
    signal(SIGXFSZ, SIG_DFL);
    if (setpgid(0, 0) || prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)) goto failed;
    if (dup2(input, 0) < 0 || dup2(output, 1) < 0 || dup2(errors, 2) < 0) goto failed;
    /* A program's exact limit is kept by `watch`; a compiler's processes have this one each. */
    rlim_t seconds = (rlim_t)((cpu_ms + 999) / 1000 + (run_filter ? 1 : 0));
    if (limit(RLIMIT_CPU, seconds) || limit(RLIMIT_FSIZE, fsize_bytes) || limit(RLIMIT_CORE, 0) ||
        limit(RLIMIT_NOFILE, 64) || limit(RLIMIT_STACK, RLIM_INFINITY) || limit(RLIMIT_MEMLOCK, 0) ||
        limit(RLIMIT_MSGQUEUE, 0))
        goto failed;
    if (as_bytes && limit(RLIMIT_AS, as_bytes)) goto failed;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || drop_capabilities()) goto failed;
    if (ruleset >= 0 && syscall(446, ruleset, 0)) goto failed; /* landlock_restrict_self */
    if (with_seccomp) {
        struct sock_fprog program = {filter_length, filter};
        for (size_t i = run_filter ? 0 : 2; i < COUNT(own_pid_at); i++) filter[own_pid_at[i]].k = (uint32_t)getpid();
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0)) goto failed;
    }
    execve(argv[0], argv, environ);
failed:
    child_error = errno ? errno : EINVAL;
    _exit(127);
}

static __attribute__((noinline)) pid_t start(char **argv, int input, int output, int errors) {
    child_error = 0;
    pid_t pid = vfork();
    if (pid == 0) child(argv, input, output, errors);
    return pid;
}

static long long nanoseconds(clockid_t clock) {
    struct timespec t;
    if (clock_gettime(clock, &t)) return -1;
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Reads a file of /proc; returns its length, or -1. */
static ssize_t read_proc(const char *path, char *text, size_t size) {
    int fd = openat(proc_dir, path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, size - 1);
    if (fd >= 0) close(fd);
    if (length >= 0) text[length] = 0;
    return length;
}

/* Whether a thread of the program wants the CPU, or waits for the disk: then it is not idle, however little it gets.
 * The program's number in the host's /proc, of which `proc_dir` is a part, is told by the kernel's notes on the pidfd. */
static int wants_cpu(int pidfd) {
    char path[300], text[1024], *at;
    snprintf(path, sizeof path, "self/fdinfo/%d", pidfd);
    if (proc_dir < 0 || read_proc(path, text, sizeof text) < 0 || !(at = strstr(text, "Pid:"))) return 0;
    int pid = atoi(at + 4), found = 0;
    snprintf(path, sizeof path, "%d/task", pid);
    int fd = openat(proc_dir, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *threads = fd < 0 ? NULL : fdopendir(fd);
    for (struct dirent *entry; threads && (entry = readdir(threads));) {
        snprintf(path, sizeof path, "%d/task/%s/stat", pid, entry->d_name);
        if (entry->d_name[0] != '.' && read_proc(path, text, sizeof text) > 0 && (at = strrchr(text, ')')))
            found |= at[1] && (at[2] == 'R' || at[2] == 'D'); /* the state follows the name in parentheses */
    }
    if (threads) closedir(threads);
    return found;
}

/* Waits for the program. NULL: it ended by itself; otherwise the reason why it was killed. */
static const char *watch(pid_t pid, int pidfd) {
    const clockid_t cpu_clock = (~pid << 3) | 2; /* CPU time of the whole process, all its threads */
    const long long began = nanoseconds(CLOCK_MONOTONIC);
    long long mark_cpu = 0, mark_wall = began;
    int looks = 0, looks_wanting = 0;
    for (;;) {
        long long now = nanoseconds(CLOCK_MONOTONIC), cpu = nanoseconds(cpu_clock);
        if (cpu < 0) cpu = mark_cpu; /* ended between two looks */
        const int wanting = looks && wants_cpu(pidfd); /* the first look comes before anything has happened */
        looks++, looks_wanting += wanting;
        if (cpu - mark_cpu >= PROGRESS_NS || wanting) mark_cpu = cpu, mark_wall = now;
        const char *reason = NULL;
        long long left_ns = cpu_ms * 1000000 - cpu;
        if (left_ns <= 0) reason = "cpu";
        else if (now - mark_wall >= idle_ms * 1000000) reason = "idle";
        /* Out of wall time: starved by other work when it mostly wanted the CPU, otherwise waiting on purpose. */
        else if (now - began >= wall_ms * 1000000) reason = 2 * looks_wanting > looks ? "starved" : "idle";
        struct pollfd wait_for = {pidfd, POLLIN, 0};
        if (reason) {
            if (poll(&wait_for, 1, 0) == 1) return NULL;
            kill(-pid, SIGKILL);
            kill(pid, SIGKILL);
            return reason;
        }
        /* CPU time of one thread runs no faster than the wall clock, so this is never late by much. */
        long long sleep_ms = left_ns / 1000000 + 1;
        if (poll(&wait_for, 1, (int)(sleep_ms < TICK_MS ? sleep_ms : TICK_MS)) == 1) return NULL;
    }
}

static int create(const char *name) {
    int fd = openat(out_dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) die(name);
    return fd;
}

static int open_input(int test) {
    char name[32];
    if (test < 0) {
        int ends[2]; /* an empty input without any file: a pipe that nobody writes to */
        if (pipe2(ends, O_CLOEXEC)) die("pipe");
        close(ends[1]);
        return ends[0];
    }
    snprintf(name, sizeof name, "%d.in", test);
    int fd = openat(in_dir, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0) die(name);
    return fd;
}

/* Returns 1 when the program ran out of time. */
static int run(int test, char **argv) {
    char name[32];
    snprintf(name, sizeof name, test < 0 ? "messages" : "%d.out", test);
    int input = open_input(test), output = create(name), errors = test < 0 ? output : create("errors");
    long long began = nanoseconds(CLOCK_MONOTONIC);
    pid_t pid = start(argv, input, output, errors);
    if (pid < 0) die("vfork");
    close(input);
    const char *reason = NULL;
    if (!child_error) {
        int pidfd = (int)syscall(434, pid, 0); /* pidfd_open */
        if (pidfd < 0) die("pidfd_open");
        reason = watch(pid, pidfd);
        close(pidfd);
    }
    struct rusage usage;
    int status;
    while (wait4(pid, &status, 0, &usage) < 0)
        if (errno != EINTR) die("wait4");
    kill(-pid, SIGKILL); /* compilers leave nothing behind, but a sandbox does not rely on it */
    long long wall = (nanoseconds(CLOCK_MONOTONIC) - began) / 1000;
    long long cpu = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000LL + usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
    int code = child_error;
    const char *how = reason;
    struct stat written;
    if (fstat(output, &written)) die("fstat");
    const int flooded = test >= 0 && written.st_size >= fsize_bytes;
    if (child_error) how = "unstarted";
    else if (!how && WIFSIGNALED(status)) how = "signal", code = WTERMSIG(status);
    else if (!how) how = "exit", code = WEXITSTATUS(status);
    if (flooded && !child_error) { /* said at once, to give the memory back before the next test */
        how = "output";
        if (ftruncate(output, 0)) die("ftruncate");
    }
    if (errors != output && !fstat(errors, &written) && written.st_size > KEPT_ERRORS && ftruncate(errors, KEPT_ERRORS))
        die("ftruncate");
    if (errors != output) close(errors);
    close(output);
    fprintf(results, "%d %s %d %lld %ld %lld\n", test, how, code, cpu, usage.ru_maxrss, wall);
    if (test >= 0 && (strcmp(how, "exit") || code)) {
        snprintf(name, sizeof name, "%d.errors", test);
        renameat(out_dir, "errors", out_dir, name);
    }
    return reason && strcmp(reason, "starved");
}

/* ---------------------------------------------------------------- the self-test's probe */

/* Tries what a program must not be able to do and prints the name of everything that worked. */
static int probe(void) {
    pid_t parent = getppid();
    int fd;
    const char *files[] = {"/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/1/environ", "/dev/vda"};
    for (size_t i = 0; i < COUNT(files); i++)
        if ((fd = open(files[i], O_RDONLY)) >= 0) printf("read:%s\n", files[i]), close(fd);
    const char *places[] = {"/x", "/tmp/x", "/dev/shm/x", "/var/tmp/x", "/usr/x", "x"};
    for (size_t i = 0; i < COUNT(places); i++)
        if ((fd = open(places[i], O_WRONLY | O_CREAT, 0600)) >= 0) printf("write:%s\n", places[i]), close(fd), unlink(places[i]);
    const int families[] = {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, 40 /* vsock */};
    for (size_t i = 0; i < COUNT(families); i++)
        if ((fd = socket(families[i], SOCK_STREAM, 0)) >= 0) printf("socket:%d\n", families[i]), close(fd);
    if (kill(parent > 0 ? parent : 1, 0) == 0) puts("signal");
    if (syscall(SYS_memfd_create, "x", 0) >= 0) puts("memfd");
    if (syscall(425, 1, NULL) < 0 && errno != EPERM && errno != ENOSYS) puts("io_uring");
    if (unshare(CLONE_NEWUSER) == 0) puts("unshare");
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    if (pid > 0) puts("fork"), waitpid(pid, NULL, 0);
    return 0;
}

/* ---------------------------------------------------------------- the command line */

static const char *value_of(const char *argument, const char *name) {
    size_t length = strlen(name);
    return !strncmp(argument, name, length) && argument[length] == '=' ? argument + length + 1 : NULL;
}

static char **parse(char **argument) {
    const struct {
        const char *name;
        long long *value;
    } numbers[] = {{"cpu", &cpu_ms}, {"wall", &wall_ms}, {"idle", &idle_ms}, {"as", &as_bytes}, {"fsize", &fsize_bytes}, {"stop", &stop_after}};
    for (; *argument && strcmp(*argument, "--"); argument++) {
        const char *value;
        size_t i;
        for (i = 0; i < COUNT(numbers); i++)
            if ((value = value_of(*argument, numbers[i].name))) {
                *numbers[i].value = atoll(value);
                break;
            }
        if (i < COUNT(numbers)) continue;
        if ((value = value_of(*argument, "tests"))) tests = value;
        else if ((value = value_of(*argument, "in"))) in_dir = atoi(value);
        else if ((value = value_of(*argument, "out"))) out_dir = atoi(value);
        else if ((value = value_of(*argument, "proc"))) proc_dir = atoi(value);
        else if ((value = value_of(*argument, "filter"))) run_filter = !strcmp(value, "run"), with_seccomp = strcmp(value, "none") != 0;
        else if ((value = value_of(*argument, "ro")) && n_read < MAX_PATHS) read_paths[n_read++] = value;
        else if ((value = value_of(*argument, "rw")) && n_write < MAX_PATHS) write_paths[n_write++] = value;
        else errno = EINVAL, die(*argument);
    }
    if (!*argument || !argument[1]) errno = EINVAL, die("no program");
    return argument + 1;
}

/* A copy of the command with '@' replaced by the test's number. */
static char **with_number(char **command, int test) {
    static char *result[MAX_ARGS], texts[MAX_ARGS][512];
    int i;
    for (i = 0; command[i] && i < MAX_ARGS - 1; i++) {
        char *at = strrchr(command[i], '@');
        result[i] = command[i];
        if (!at || at[1] != '.' || test < 0) continue;
        snprintf(texts[i], sizeof texts[i], "%.*s%d%s", (int)(at - command[i]), command[i], test, at + 1);
        result[i] = texts[i];
    }
    result[i] = NULL;
    return result;
}

int main(int argc, char **argv) {
    (void)argc;
    if (argv[1] && !strcmp(argv[1], "probe")) return probe();
    if (argv[1] && !strcmp(argv[1], "abi")) return printf("%ld\n", landlock_abi()) < 0;
    char **command = parse(argv + 1);
    if (out_dir < 0) errno = EBADF, die("out");
    const int folders[] = {out_dir, in_dir, proc_dir}; /* the program must not inherit them */
    for (size_t i = 0; i < COUNT(folders); i++)
        if (folders[i] >= 0 && fcntl(folders[i], F_SETFD, FD_CLOEXEC)) die("fcntl");
    syscall(436, 3, ~0U, 4); /* close_range with CLOEXEC: whatever else was left open, on kernels that have it */
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (with_seccomp) build_filter();
    if (n_read) build_landlock();
    int results_fd = create("results");
    if (!(results = fdopen(results_fd, "w"))) die("results");
    if (!tests) {
        run(-1, with_number(command, -1));
    } else {
        long long timeouts = 0;
        for (const char *next = tests; next && timeouts < stop_after; next = strchr(next, ',') ? strchr(next, ',') + 1 : NULL)
            timeouts += run(atoi(next), with_number(command, atoi(next)));
    }
    fputs("done\n", results);
    return fclose(results) ? 2 : 0;
}
