#include <bits/stdc++.h>
using namespace std;
int main() {
    int n, best = 99;
    cin >> n;
    for (int candidate = 99; candidate <= 20000; candidate += 100)
        if (abs(candidate - n) <= abs(best - n)) best = candidate;
    cout << best << endl;
}
