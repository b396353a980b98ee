// expect: TIME_LIMIT
// waits without using the CPU
#include <unistd.h>
int main() { sleep(1000); }
