// expect: RUNTIME_ERROR
// the newest way to make a process, which a filter on its arguments cannot read
#include <cstdio>
#include <linux/sched.h>
#include <sys/syscall.h>
#include <unistd.h>
int main() {
    clone_args arguments = {};
    long pid = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid < 0) return 1;
    if (pid == 0) puts("42");
}
