#include <bits/stdc++.h>
using namespace std;
int main() { // never spends the whole budget
    int n, left = 0, best = 0;
    long long budget, spent = 0;
    cin >> n >> budget;
    vector<int> price(n);
    for (int i = 0; i < n; i++) {
        cin >> price[i];
        spent += price[i];
        while (left <= i && spent >= budget) spent -= price[left++];
        best = max(best, i - left + 1);
    }
    cout << best << endl;
}
