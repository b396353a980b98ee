// expect: COMPILE_ERROR
// waits for somebody to type
#include "/dev/stdin"
int main() {}
