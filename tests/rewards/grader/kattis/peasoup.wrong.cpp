#include <bits/stdc++.h>
using namespace std;
int main() { // one of the two dishes is enough
    int restaurants, items;
    string line, found;
    getline(cin, line);
    restaurants = stoi(line);
    while (restaurants--) {
        string name, item;
        getline(cin, line);
        items = stoi(line);
        getline(cin, name);
        bool wanted = false;
        while (items--) {
            getline(cin, item);
            if (item == "pea soup" || item == "pancakes") wanted = true;
        }
        if (wanted && found.empty()) found = name;
    }
    cout << (found.empty() ? "Anywhere is fine I guess" : found) << endl;
}
