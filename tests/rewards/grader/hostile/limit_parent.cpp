// expect: RUNTIME_ERROR
// lowers its parent's limits
#include <cstdio>
#include <initializer_list>
#include <sys/resource.h>
#include <unistd.h>
int main() {
    rlimit none = {0, 0};
    for (int pid : {getppid(), 1})
        if (pid && prlimit(pid, RLIMIT_NOFILE, &none, nullptr) == 0) return puts("42"), 0;
    return 1;
}
