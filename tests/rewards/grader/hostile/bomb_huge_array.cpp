// expect: COMPILE_ERROR
// two gigabytes of initialised data
int a[1 << 29] = {1};
int main() { return a[5]; }
