// expect: RUNTIME_ERROR
// turns itself into a shell
#include <unistd.h>
int main() {
    execl("/bin/sh", "sh", "-c", "echo 42", nullptr);
    return 1;
}
