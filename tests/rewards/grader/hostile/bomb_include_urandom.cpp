// expect: COMPILE_ERROR
// an endless file of noise
#include "/dev/urandom"
int main() {}
