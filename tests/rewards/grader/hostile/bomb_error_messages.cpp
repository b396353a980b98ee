// expect: COMPILE_ERROR
// every error message is longer than the one before
template <class T> struct Twice { typedef typename Twice<Twice<T>>::type type; };
template <class T> struct Pair : Pair<Pair<T>>, Twice<T> {};
Pair<int>::type value;
int main() {}
