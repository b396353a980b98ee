// expect: COMPILE_ERROR
// a macro that grows to a thousand million terms
#define A(x) x + x + x + x + x + x + x + x + x + x
#define B(x) A(A(A(x)))
#define C(x) B(B(B(x)))
int main() { return C(1); }
