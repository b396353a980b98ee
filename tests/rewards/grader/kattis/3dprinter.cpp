#include <cstdio>
int main() {
    int n, days = 1;
    scanf("%d", &n);
    for (int printers = 1; printers < n; printers *= 2) days++;
    printf("%d\n", days);
}
