// expect: RUNTIME_ERROR
// changes its own program, its input and the libraries
#include <cstdio>
#include <fcntl.h>
#include <string>
#include <unistd.h>
int main(int, char **argv) {
    if (open(argv[0], O_WRONLY) >= 0 || unlink(argv[0]) == 0 || write(0, "x", 1) == 1 || ftruncate(0, 0) == 0) return puts("42"), 0;
    if (rename(argv[0], (std::string(argv[0]) + "x").c_str()) == 0) return puts("42"), 0;
    return 1;
}
