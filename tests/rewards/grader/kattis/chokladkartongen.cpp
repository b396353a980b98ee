#include <iostream>
int main() {
    int n, before = 1 << 30, now, boxes = 0;
    std::cin >> n;
    while (n-- && std::cin >> now) {
        if (now > before) boxes++;
        before = now;
    }
    std::cout << boxes << std::endl;
}
