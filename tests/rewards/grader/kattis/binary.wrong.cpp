#include <cstdio>
int main() { // reverses all 32 bits
    unsigned n, reversed = 0;
    scanf("%u", &n);
    for (int i = 0; i < 32; i++, n >>= 1) reversed = reversed << 1 | (n & 1);
    printf("%u\n", reversed);
}
