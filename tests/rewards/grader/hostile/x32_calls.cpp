// expect: RUNTIME_ERROR
// system calls of the x32 machine: fork and socket with a bit set in the number
#include <cstdio>
#include <unistd.h>
int main() {
    long pid = syscall(0x40000000 | 57);
    if (pid > 0 || syscall(0x40000000 | 41, 2, 1, 0) >= 0) return puts("42"), 0;
    return pid == 0 ? 0 : 1;
}
