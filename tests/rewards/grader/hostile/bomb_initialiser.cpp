// expect: COMPILE_ERROR
// a constant string of 64 megabytes, doubled by macros
#define A "0123456789012345678901234567890123456789012345678901234567890123"
#define B A A A A A A A A A A A A A A A A
#define C B B B B B B B B B B B B B B B B
#define D C C C C C C C C C C C C C C C C
#define E D D D D D D D D D D D D D D D D
const char text[] = E E E E E E E E E E E E E E E E;
int main(int count, char **) { return text[count]; }
