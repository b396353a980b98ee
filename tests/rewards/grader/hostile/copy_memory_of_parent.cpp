// expect: RUNTIME_ERROR
// reads another process's memory with process_vm_readv
#include <cerrno>
#include <cstdio>
#include <initializer_list>
#include <sys/uio.h>
#include <unistd.h>
int main() {
    char there[16];
    iovec mine = {there, 16}, theirs = {(void *)0x400000, 16};
    for (int pid : {getppid(), 1})
        if (process_vm_readv(pid, &mine, 1, &theirs, 1, 0) >= 0 || errno == EFAULT) return puts("42"), 0;
    return 1;
}
