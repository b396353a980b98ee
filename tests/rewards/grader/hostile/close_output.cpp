// expect: WRONG_ANSWER
// closes its output before it answers
#include <cstdio>
#include <unistd.h>
int main() {
    close(1);
    puts("42");
}
