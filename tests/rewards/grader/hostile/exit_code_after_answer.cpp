// expect: RUNTIME_ERROR
// prints the right answer, then reports failure
#include <cstdio>
int main() {
    puts("42");
    return 7;
}
