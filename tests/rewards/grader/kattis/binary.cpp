#include <cstdio>
int main() {
    int n, reversed = 0;
    scanf("%d", &n);
    for (; n; n >>= 1) reversed = reversed << 1 | (n & 1);
    printf("%d\n", reversed);
}
