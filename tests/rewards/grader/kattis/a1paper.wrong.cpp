#include <bits/stdc++.h>
using namespace std;
int main() { // prints too few digits
    int smallest;
    scanf("%d", &smallest);
    double tape = 0, side = pow(2, -0.75);
    long long missing = 2;
    for (int size = 2; size <= smallest; size++, side /= sqrt(2.0)) {
        long long have;
        scanf("%lld", &have);
        tape += missing / 2.0 * side;
        missing = max(0LL, missing - have) * 2;
    }
    if (missing) puts("impossible");
    else printf("%.2f\n", tape);
}
