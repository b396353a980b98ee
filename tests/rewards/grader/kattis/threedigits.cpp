#include <cstdio>
int main() {
    int n, twos = 0, fives = 0;
    long long rest = 1;
    bool large = false;
    scanf("%d", &n);
    for (int i = 1; i <= n; i++) {
        int x = i;
        while (x % 2 == 0) x /= 2, twos++;
        while (x % 5 == 0) x /= 5, fives++;
        rest *= x;
        if (rest >= 1000) large = true, rest %= 1000;
    }
    for (twos -= fives; twos > 0; twos--) {
        rest *= 2;
        if (rest >= 1000) large = true, rest %= 1000;
    }
    printf(large ? "%03lld\n" : "%lld\n", rest);
}
