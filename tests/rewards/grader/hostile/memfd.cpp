// expect: RUNTIME_ERROR
// a file without a name, which no limit on files counts
#include <cstdio>
#include <sys/mman.h>
int main() {
    if (memfd_create("x", 0) < 0) return 1;
    puts("42");
}
