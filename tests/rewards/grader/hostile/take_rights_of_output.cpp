// expect: RUNTIME_ERROR
// takes the right to read its output, which the grader reads
#include <cstdio>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
int main() {
    bool taken = fchmod(1, 0) == 0 || syscall(452, 1, "", 0, AT_EMPTY_PATH) == 0;
    if (!taken && fchown(1, -1, -1) != 0 && futimens(1, nullptr) != 0) return 1;
    puts("42");
}
