#include <iostream>
int main() { // forgets October
    std::string month, day;
    std::cin >> month >> day;
    std::cout << (month == "DEC" && day == "25" ? "yup" : "nope") << "\n";
}
