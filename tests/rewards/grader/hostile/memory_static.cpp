// expect: MEMORY_LIMIT
// a static array beyond the limit
char big[1L << 30];
int main() {
    for (long i = 0; i < 1L << 30; i += 4096) big[i] = 1;
}
