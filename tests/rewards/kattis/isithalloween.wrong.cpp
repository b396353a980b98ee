#include <iostream>
int main() { // forgets December 25
    std::string month, day;
    std::cin >> month >> day;
    std::cout << (month == "OCT" && day == "31" ? "yup" : "nope") << "\n";
}
