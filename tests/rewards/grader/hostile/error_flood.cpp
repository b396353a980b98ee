// expect: OUTPUT_LIMIT
// floods the error stream, which is kept for its first lines
#include <cstdio>
int main() {
    puts("42");
    for (;;) fputs("error error error error error error error error error error error error\n", stderr);
}
