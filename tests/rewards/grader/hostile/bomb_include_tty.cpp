// expect: COMPILE_ERROR
// the terminal
#include "/dev/tty"
int main() {}
