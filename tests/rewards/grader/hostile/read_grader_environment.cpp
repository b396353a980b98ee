// expect: RUNTIME_ERROR
// reads environments and command lines
#include <cstdio>
int main() {
    const char *paths[] = {"/proc/self/environ", "/proc/1/environ", "/proc/self/cmdline", "/proc/1/cmdline"};
    for (const char *path : paths)
        if (fopen(path, "r")) return puts("42"), 0;
    return 1;
}
