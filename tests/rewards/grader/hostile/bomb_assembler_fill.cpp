// expect: COMPILE_ERROR
// four gigabytes from the assembler
asm(".data\n.fill 0x7fffffff, 2, 1");
int main() {}
