// expect: RUNTIME_ERROR
// a socket to the kernel
#include <cstdio>
#include <sys/socket.h>
int main() {
    if (socket(AF_NETLINK, SOCK_RAW, 0) < 0) return 1;
    puts("42");
}
