// expect: TIME_LIMIT
// computes for ever, with every signal blocked or ignored
#include <csignal>
int main() {
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, nullptr);
    signal(SIGXCPU, SIG_IGN);
    for (volatile long i = 0;; i = i + 1);
}
