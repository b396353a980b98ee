// expect: WRONG_ANSWER
// the right answer, and one line more
#include <cstdio>
int main() { puts("42\n42"); }
