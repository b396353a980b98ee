// expect: OUTPUT_LIMIT
// one byte of output, a terabyte behind the start
#include <unistd.h>
int main() {
    lseek(1, 1L << 40, SEEK_SET);
    return write(1, "x", 1) == 1 ? 0 : 1;
}
