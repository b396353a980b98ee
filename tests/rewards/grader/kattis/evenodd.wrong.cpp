#include <bits/stdc++.h>
using namespace std;
const long long MOD = 1000000007;
map<long long, long long> known;
long long total(long long n) {
    if (n <= 1) return 0;
    if (known.count(n)) return known[n];
    long long evens = n / 2, odds = (n + 1) / 2 - 1;
    return known[n] = (evens % MOD + 2 * (odds % MOD) + total(evens) + total((n + 1) / 2)) % MOD;
}
int main() { // a negative remainder when the difference is below zero
    long long left, right;
    cin >> left >> right;
    cout << (total(right) - total(left - 1)) % MOD << endl;
}
