// expect: TIME_LIMIT
// stops itself like Ctrl-Z
#include <csignal>
int main() { raise(SIGSTOP); }
