#include <iostream>
int main() {
    int apples, pears;
    std::cin >> apples >> pears;
    int axel = 7 * apples, petra = 13 * pears;
    std::cout << (axel > petra ? "Axel" : axel < petra ? "Petra" : "lika");
}
