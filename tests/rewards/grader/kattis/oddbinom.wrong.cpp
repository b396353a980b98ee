#include <iostream>
int main() { // right, but too slow for a large n
    long long n, sum = 0;
    std::cin >> n;
    for (long long m = 0; m < n; m++) sum += 1LL << __builtin_popcountll(m);
    std::cout << sum << "\n";
}
