// expect: COMPILE_ERROR
// a file of the host as data of the program
#include <cstdio>
asm("secret: .incbin \"/etc/passwd\"\n.byte 0");
extern char secret[] asm("secret");
int main() { puts(secret); }
