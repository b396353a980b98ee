#include <bits/stdc++.h>
using namespace std;
int main() {
    string board(9, ' ');
    for (char &square : board) cin >> square;
    const int lines[8][3] = {{0, 1, 2}, {3, 4, 5}, {6, 7, 8}, {0, 3, 6}, {1, 4, 7}, {2, 5, 8}, {0, 4, 8}, {2, 4, 6}};
    string winner = "ingen";
    for (auto &line : lines)
        if (board[line[0]] == board[line[1]] && board[line[1]] == board[line[2]] && board[line[0]] != '_')
            winner = board[line[0]] == 'X' ? "Johan" : "Abdullah";
    cout << winner << " har vunnit" << endl;
}
