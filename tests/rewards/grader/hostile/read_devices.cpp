// expect: RUNTIME_ERROR
// opens devices
#include <cstdio>
int main() {
    const char *paths[] = {"/dev/zero", "/dev/urandom", "/dev/mem", "/dev/vda", "/dev/sda", "/dev/tty"};
    for (const char *path : paths)
        if (fopen(path, "r")) return puts("42"), 0;
    return 1;
}
