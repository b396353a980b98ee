// expect: TIME_LIMIT
// prints the right answer, then never ends
#include <cstdio>
#include <unistd.h>
int main() {
    puts("42");
    fflush(stdout);
    for (;;) pause();
}
