// expect: RUNTIME_ERROR
// system calls of the 32-bit machine, with other numbers (2 is fork there)
#include <cstdio>
#include <unistd.h>
int main() {
    long result = -1;
#if defined(__x86_64__)
    asm volatile("int $0x80" : "=a"(result) : "a"(2) : "memory");
#endif
    if (result < 0) return 1;
    if (result > 0) puts("42");
}
