// expect: OUTPUT_LIMIT
// floods the error stream, which is kept for its first lines; by blocks, so that its size is its end and not its CPU time
#include <cstdio>
#include <string>
int main() {
    puts("42");
    std::string block;
    while (block.size() < 1 << 16) block += "error error error error error error error error error error error error\n";
    for (;;) fwrite(block.data(), 1, block.size(), stderr);
}
