// expect: COMPILE_ERROR
// computes for ever at compile time
constexpr long spin(long n) {
    long sum = 0;
    for (long i = 0; i < n; i++)
        for (long j = 0; j < n; j++) sum += i ^ j;
    return sum;
}
constexpr long value = spin(1000000);
int main() { return value; }
