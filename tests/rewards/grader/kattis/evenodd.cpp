#include <bits/stdc++.h>
using namespace std;
const long long MOD = 1000000007;
map<long long, long long> known;
// The sum of f over 1..n: an even x takes one step to x/2, an odd x > 1 two steps to (x+1)/2.
long long total(long long n) {
    if (n <= 1) return 0;
    if (known.count(n)) return known[n];
    long long evens = n / 2, odds = (n + 1) / 2 - 1;
    long long sum = (evens % MOD + 2 * (odds % MOD) + total(evens) + total((n + 1) / 2)) % MOD;
    return known[n] = sum;
}
int main() {
    long long left, right;
    cin >> left >> right;
    cout << (total(right) - total(left - 1) + MOD) % MOD << endl;
}
