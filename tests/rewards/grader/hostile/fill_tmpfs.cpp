// expect: RUNTIME_ERROR
// fills whatever file system it can write to
#include <cstdio>
#include <fcntl.h>
#include <unistd.h>
char block[1 << 20];
int main() {
    int written = 0;
    for (int i = 0; i < 1000; i++) {
        char path[64];
        snprintf(path, sizeof path, i % 2 ? "/fill-%d" : "/dev/shm/fill-%d", i);
        int fd = open(path, O_CREAT | O_WRONLY, 0600);
        while (fd >= 0 && write(fd, block, sizeof block) > 0) written++;
    }
    return written ? puts("42"), 0 : 1;
}
