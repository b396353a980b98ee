// expect: RUNTIME_ERROR
// prints the right answer, then crashes
#include <csignal>
#include <cstdio>
int main() {
    puts("42");
    fflush(stdout);
    raise(SIGSEGV);
}
