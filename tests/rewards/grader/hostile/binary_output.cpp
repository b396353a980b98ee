// expect: WRONG_ANSWER
// bytes that are no text
#include <cstdio>
int main() {
    for (int c = 0; c < 256; c++) putchar(c);
}
