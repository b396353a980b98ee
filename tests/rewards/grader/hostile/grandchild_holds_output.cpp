// expect: RUNTIME_ERROR
// a grandchild in a session of its own keeps the output open after the program has ended
#include <cstdio>
#include <unistd.h>
int main() {
    pid_t pid = fork();
    if (pid < 0) return 1;
    if (pid == 0) setsid(), fork(), sleep(60), _exit(0);
    puts("42");
}
