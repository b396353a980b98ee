// expect: RUNTIME_ERROR
// opens files until none is left
#include <cstdio>
#include <unistd.h>
int main() {
    int count = 0;
    while (dup(0) >= 0) count++;
    if (count < 100) return 1;
    puts("42");
}
