// expect: COMPILE_ERROR
// two thousand million instructions
asm(".rept 2000000000\nnop\n.endr");
int main() {}
