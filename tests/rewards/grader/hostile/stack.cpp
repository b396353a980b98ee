// expect: MEMORY_LIMIT
// recursion without an end
int deeper(int depth) {
    volatile char frame[1000];
    frame[depth % 1000] = 1;
    return deeper(depth + 1) + frame[depth % 7];
}
int main() { return deeper(0); }
