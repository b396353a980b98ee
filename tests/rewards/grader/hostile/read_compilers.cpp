// expect: RUNTIME_ERROR
// reads files that only a compiler needs
#include <cstdio>
int main() {
    const char *paths[] = {"/usr/bin/g++", "/usr/include/stdio.h", "/usr/local/bin/python3"};
    for (const char *path : paths)
        if (fopen(path, "r")) return puts("42"), 0;
    return 1;
}
