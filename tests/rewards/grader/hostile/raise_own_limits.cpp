// expect: TIME_LIMIT
// lifts its limits, then computes for ever
#include <sys/resource.h>
int main() {
    rlimit none = {RLIM_INFINITY, RLIM_INFINITY};
    setrlimit(RLIMIT_CPU, &none);
    setrlimit(RLIMIT_AS, &none);
    for (volatile long i = 0;; i = i + 1);
}
