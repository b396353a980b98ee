// expect: COMPILE_ERROR
// an array of nearly all memory
int a[-1u] = {1};
int main() { return a[5]; }
