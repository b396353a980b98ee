#include <iostream>
int main() {
    std::string month, day;
    std::cin >> month >> day;
    std::string date = month + " " + day;
    std::cout << (date == "OCT 31" || date == "DEC 25" ? "yup" : "nope") << "\n";
}
