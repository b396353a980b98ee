// expect: RUNTIME_ERROR
// runs a shell command
#include <cstdlib>
int main() { return system("echo 42") == 0 ? 0 : 1; }
