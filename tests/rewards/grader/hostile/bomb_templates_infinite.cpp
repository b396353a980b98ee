// expect: COMPILE_ERROR
// a template without an end
template <int N> struct Endless { static const int value = Endless<N + 1>::value; };
int main() { return Endless<0>::value; }
