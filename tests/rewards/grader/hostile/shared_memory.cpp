// expect: RUNTIME_ERROR
// System V shared memory, which outlives its process
#include <cstdio>
#include <sys/shm.h>
int main() {
    if (shmget(IPC_PRIVATE, 1 << 20, IPC_CREAT | 0600) < 0) return 1;
    puts("42");
}
