// expect: TIME_LIMIT
// reads from a pipe that it holds open itself
#include <unistd.h>
int main() {
    int ends[2];
    char c;
    return pipe(ends) || read(ends[0], &c, 1) < 0;
}
