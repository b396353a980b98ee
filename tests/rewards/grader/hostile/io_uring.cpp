// expect: RUNTIME_ERROR
// asynchronous system calls that a filter does not see
#include <cerrno>
#include <cstdio>
#include <sys/syscall.h>
#include <unistd.h>
int main() {
    char parameters[256] = {};
    if (syscall(425, 4, parameters) < 0 && (errno == EPERM || errno == ENOSYS)) return 1;
    puts("42");
}
