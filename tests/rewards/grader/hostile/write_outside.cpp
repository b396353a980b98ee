// expect: RUNTIME_ERROR
// creates files and folders wherever it might
#include <cstdio>
#include <fcntl.h>
#include <initializer_list>
#include <sys/stat.h>
int main() {
    for (const char *path : {"x", "/x", "/tmp/x", "/var/tmp/x", "/dev/shm/x", "/usr/lib/x", "/home/x", "../x", "/proc/x"})
        if (open(path, O_CREAT | O_WRONLY, 0600) >= 0 || mkdir(path, 0700) == 0) return puts("42"), 0;
    return 1;
}
