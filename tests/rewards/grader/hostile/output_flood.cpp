// expect: OUTPUT_LIMIT
// prints for ever
#include <cstdio>
int main() {
    for (;;) puts("42 42 42 42 42 42 42 42 42 42 42 42 42 42 42 42 42 42 42 42 42 42");
}
