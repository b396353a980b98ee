// expect: TIME_LIMIT
// forks for ever; without processes it only burns its own CPU time
#include <unistd.h>
int main() {
    for (;;) fork();
}
