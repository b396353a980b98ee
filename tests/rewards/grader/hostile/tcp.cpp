// expect: RUNTIME_ERROR
// a TCP socket
#include <cstdio>
#include <sys/socket.h>
int main() {
    if (socket(AF_INET, SOCK_STREAM, 0) < 0) return 1;
    puts("42");
}
