// expect: COMPILE_ERROR
// a file of the host as assembly
asm(".include \"/etc/passwd\"");
int main() {}
