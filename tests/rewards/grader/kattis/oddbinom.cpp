#include <iostream>
int main() {
    // Row m of Pascal's triangle holds 2^(ones of m) odd numbers; the first 2^k rows hold 3^k.
    long long n, sum = 0, factor = 1;
    std::cin >> n;
    for (int bit = 40; bit >= 0; bit--)
        if (n >> bit & 1) {
            long long power = 1;
            for (int i = 0; i < bit; i++) power *= 3;
            sum += factor * power;
            factor *= 2;
        }
    std::cout << sum << "\n";
}
