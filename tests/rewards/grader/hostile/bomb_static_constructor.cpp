// expect: TIME_LIMIT
// compiles quickly and loops before main
struct Loop {
    Loop() { for (volatile long i = 0;; i = i + 1); }
} loop;
int main() {}
