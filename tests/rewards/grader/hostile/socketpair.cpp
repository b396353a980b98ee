// expect: RUNTIME_ERROR
// two sockets joined together, whose buffers no limit counts
#include <cstdio>
#include <sys/socket.h>
int main() {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) return 1;
    puts("42");
}
