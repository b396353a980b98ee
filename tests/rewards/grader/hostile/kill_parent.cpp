// expect: RUNTIME_ERROR
// signals its parent, the first process, everybody, and another thread group
#include <csignal>
#include <cstdio>
#include <initializer_list>
#include <sys/syscall.h>
#include <unistd.h>
int main() {
    for (int pid : {getppid(), 1, -1, 0, -getpid()})
        if (kill(pid, SIGKILL) == 0) return puts("42"), 0;
    if (syscall(SYS_tgkill, 1, 1, SIGKILL) == 0 || syscall(SYS_tkill, 1, SIGKILL) == 0) return puts("42"), 0;
    return 1;
}
