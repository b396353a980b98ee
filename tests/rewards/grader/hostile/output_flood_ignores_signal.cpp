// expect: OUTPUT_LIMIT
// prints for ever and ignores the signal that ends others
#include <csignal>
#include <unistd.h>
char block[1 << 16];
int main() {
    signal(SIGXFSZ, SIG_IGN);
    while (write(1, block, sizeof block) > 0);
}
