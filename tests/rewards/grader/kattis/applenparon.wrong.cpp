#include <iostream>
int main() { // the tie goes to Petra
    int apples, pears;
    std::cin >> apples >> pears;
    std::cout << (7 * apples > 13 * pears ? "Axel" : "Petra");
}
