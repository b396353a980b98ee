// expect: RUNTIME_ERROR
// a socket to the host of a virtual machine
#include <cstdio>
#include <sys/socket.h>
int main() {
    if (socket(AF_VSOCK, SOCK_STREAM, 0) < 0) return 1;
    puts("42");
}
