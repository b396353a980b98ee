// expect: RUNTIME_ERROR
// one child that answers in place of its parent
#include <cstdio>
#include <sys/wait.h>
#include <unistd.h>
int main() {
    pid_t pid = fork();
    if (pid < 0) return 1;
    if (pid == 0) puts("42"), fflush(stdout), _exit(0);
    waitpid(pid, nullptr, 0);
}
