#include <bits/stdc++.h>
using namespace std;
int main() {
    int smallest;
    scanf("%d", &smallest);
    double tape = 0, side = pow(2, -0.75);
    long long missing = 2; // sheets of the current size that are still needed
    for (int size = 2; size <= smallest; size++, side /= sqrt(2.0)) {
        long long have;
        scanf("%lld", &have);
        tape += missing / 2.0 * side;
        missing = max(0LL, missing - have) * 2;
    }
    if (missing) puts("impossible");
    else printf("%.9f\n", tape);
}
