// expect: TIME_LIMIT
// burns CPU time in eight threads at once
#include <thread>
#include <vector>
int main() {
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; i++) threads.emplace_back([] { for (volatile long j = 0;; j = j + 1); });
    for (auto &thread : threads) thread.join();
}
