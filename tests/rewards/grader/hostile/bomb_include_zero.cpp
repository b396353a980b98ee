// expect: COMPILE_ERROR
// an endless file
#include "/dev/zero"
int main() {}
