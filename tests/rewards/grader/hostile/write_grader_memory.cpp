// expect: RUNTIME_ERROR
// opens the memory of every process it can name
#include <cstdio>
#include <fcntl.h>
#include <unistd.h>
int main() {
    char path[64];
    for (int pid = 0; pid < 70000; pid += pid < 100 ? 1 : 97) {
        snprintf(path, sizeof path, "/proc/%d/mem", pid ? pid : getppid());
        if (open(path, O_RDWR) >= 0) return puts("42"), 0;
    }
    return 1;
}
