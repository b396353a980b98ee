// expect: COMPILE_ERROR
// shows an environment in the error message
#include "/proc/self/environ"
int main() {}
