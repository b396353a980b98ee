#include <bits/stdc++.h>
using namespace std;
int main() { // always rounds up
    int n;
    cin >> n;
    cout << n / 100 * 100 + 99 << endl;
}
