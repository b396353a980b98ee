// expect: MEMORY_LIMIT
// allocates and touches memory until it is refused
#include <cstdlib>
#include <cstring>
int main() {
    for (;;) memset(malloc(1 << 20), 1, 1 << 20);
}
