// expect: RUNTIME_ERROR
// a UNIX socket
#include <cstdio>
#include <sys/socket.h>
int main() {
    if (socket(AF_UNIX, SOCK_STREAM, 0) < 0) return 1;
    puts("42");
}
