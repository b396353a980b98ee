#include <bits/stdc++.h>
using namespace std;
int main() {
    int restaurants, items;
    string line, found;
    getline(cin, line);
    restaurants = stoi(line);
    while (restaurants--) {
        string name, item;
        getline(cin, line);
        items = stoi(line);
        getline(cin, name);
        int wanted = 0;
        while (items--) {
            getline(cin, item);
            if (item == "pea soup") wanted |= 1;
            if (item == "pancakes") wanted |= 2;
        }
        if (wanted == 3 && found.empty()) found = name;
    }
    cout << (found.empty() ? "Anywhere is fine I guess" : found) << endl;
}
