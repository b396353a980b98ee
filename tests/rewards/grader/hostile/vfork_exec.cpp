// expect: RUNTIME_ERROR
// vfork, then a shell
#include <unistd.h>
int main() {
    pid_t pid = vfork();
    if (pid < 0) return 1;
    if (pid == 0) execl("/bin/sh", "sh", "-c", "echo 42", nullptr), _exit(0);
}
