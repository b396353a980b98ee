// expect: RUNTIME_ERROR
// looks for a secret in its own environment
#include <cstdio>
#include <cstring>
#include <unistd.h>
int main() {
    for (char **entry = environ; *entry; entry++)
        if (strncmp(*entry, "PATH=", 5) && strncmp(*entry, "LC_ALL=", 7) && strncmp(*entry, "PWD=", 4)) return puts("42"), 0;
    return 1;
}
