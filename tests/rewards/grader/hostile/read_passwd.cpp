// expect: RUNTIME_ERROR
// reads files of the host
#include <cstdio>
int main() {
    const char *paths[] = {"/etc/passwd", "/etc/shadow", "/etc/hostname", "/etc/group"};
    for (const char *path : paths)
        if (fopen(path, "r")) return puts("42"), 0;
    return 1;
}
