// expect: MEMORY_LIMIT
// one allocation far beyond the limit
#include <vector>
int main() {
    std::vector<char> big(1L << 33);
    return big[12345];
}
