// expect: MEMORY_LIMIT
// touches an anonymous mapping, shared so that it would outlive a child
#include <cstdlib>
#include <sys/mman.h>
int main() {
    for (;;) {
        char *p = (char *)mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) abort();
        for (int i = 0; i < 1 << 20; i += 4096) p[i] = 1;
    }
}
