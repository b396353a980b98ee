#include <cstdio>
int main() { // loses leading zeros
    int n, twos = 0, fives = 0;
    long long rest = 1;
    scanf("%d", &n);
    for (int i = 1; i <= n; i++) {
        int x = i;
        while (x % 2 == 0) x /= 2, twos++;
        while (x % 5 == 0) x /= 5, fives++;
        rest = rest * x % 1000;
    }
    for (twos -= fives; twos > 0; twos--) rest = rest * 2 % 1000;
    printf("%lld\n", rest);
}
