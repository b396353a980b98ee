// expect: COMPILE_ERROR or WRONG_ANSWER
// waits for somebody to type; harmless where it opens, for nobody does
#include "/dev/stdin"
int main() {}
