// expect: RUNTIME_ERROR
// attaches to its parent as a debugger
#include <cstdio>
#include <initializer_list>
#include <sys/ptrace.h>
#include <unistd.h>
int main() {
    for (int pid : {getppid(), 1})
        if (ptrace(PTRACE_ATTACH, pid, 0, 0) == 0 || ptrace(PTRACE_SEIZE, pid, 0, 0) == 0) return puts("42"), 0;
    return 1;
}
