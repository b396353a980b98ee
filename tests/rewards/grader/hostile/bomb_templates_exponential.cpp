// expect: COMPILE_ERROR
// each level asks for two different ones below it
template <int N, long I> struct Tree { static const int value = Tree<N - 1, 2 * I>::value + Tree<N - 1, 2 * I + 1>::value; };
template <long I> struct Tree<0, I> { static const int value = 1; };
int main() { return Tree<40, 1>::value; }
