// expect: COMPILE_ERROR
// shows a file of the host in the error message
#include "/etc/passwd"
int main() {}
