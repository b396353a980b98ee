"""Generated C++ programs whose beginnings differ in every way that could matter to a precompiled header.

A beginning is a list of lines: includes in many spellings, and what may stand between them. A body uses what may be
included or not, or looks for what it should not see. Bodies print with `__builtin_printf`, which needs no header.
"""

from __future__ import annotations

from hypothesis import strategies as st

USES = {
    "algorithm": "int a[] = {3, 1, 2}; std::sort(a, a + 3); show(a[0]);",
    "any": "std::any a = 7; show(std::any_cast<int>(a));",
    "array": "std::array<int, 3> a{}; show(a.size());",
    "assert.h": "assert(sizeof(int) == 4); show(1);",
    "bitset": "std::bitset<8> b(5); show(b.count());",
    "cassert": "assert(1 + 1 == 2); show(2);",
    "cctype": "show(std::toupper('a'));",
    "chrono": "show(std::chrono::seconds(2).count());",
    "climits": "show(INT_MAX);",
    "cmath": "show(std::sqrt(9.0)); show(sizeof(std::abs(-2.5)));",
    "complex": "std::complex<double> c(3, 4); show(std::abs(c));",
    "cstdint": "std::uint8_t b = 255; b++; show(b);",
    "cstdio": 'std::printf("%d\\n", 4);',
    "cstdlib": "show(std::abs(-3));",
    "cstring": 'show(std::strlen("four"));',
    "ctime": "std::time_t t = 0; show(t);",
    "deque": "std::deque<int> d{1, 2}; d.push_front(0); show(d.size());",
    "filesystem": 'show(std::filesystem::path("a/b").filename().string().size());',
    "functional": "std::function<int(int)> f = [](int x) { return x + 1; }; show(f(1));",
    "future": "std::promise<int> p; p.set_value(3); show(p.get_future().get());",
    "iomanip": "std::cout << std::fixed << std::setprecision(2) << 1.0 << std::endl;",
    "iostream": "std::cout << 5 << std::endl;",
    "iterator": "int a[] = {1, 2}; show(std::distance(std::begin(a), std::end(a)));",
    "limits": "show(std::numeric_limits<int>::digits);",
    "list": "std::list<int> l{3, 1}; l.sort(); show(l.front());",
    "map": "std::map<int, int> m; m[1] = 2; show(m[1]);",
    "math.h": "show(sqrt(16.0)); show(sizeof(abs(-2.5)));",
    "memory": "show(*std::make_unique<int>(6));",
    "mutex": "std::mutex m; std::lock_guard<std::mutex> guard(m); show(1);",
    "numeric": "int a[] = {1, 2}; show(std::accumulate(a, a + 2, 0)); show(std::gcd(4, 6));",
    "optional": "std::optional<int> o; show(o.value_or(9));",
    "queue": "std::priority_queue<int> q; q.push(1); q.push(4); show(q.top());",
    "random": "std::mt19937 r(1); show(r() > 0);",
    "regex": 'show(std::regex_match("aaa", std::regex("a+")));',
    "set": "std::set<int> s{1, 1}; show(s.size());",
    "sstream": "std::stringstream s; s << 12; int n; s >> n; show(n);",
    "stack": "std::stack<int> s; s.push(2); show(s.top());",
    "stdio.h": 'printf("%d\\n", 8);',
    "stdlib.h": 'show(atoi("31"));',
    "string": 'std::string s = "ab"; s += std::to_string(3); show(s.size());',
    "string.h": 'show(strlen("abc"));',
    "string_view": 'std::string_view v = "abc"; show(v.size());',
    "thread": "int n = 0; std::thread t([&] { n = 1; }); t.join(); show(n);",
    "tuple": "auto [a, b] = std::make_tuple(1, 2); show(a + b);",
    "type_traits": "show(std::is_same_v<int, int>);",
    "unordered_map": "std::unordered_map<int, int> m{{1, 2}}; show(m.at(1));",
    "utility": "auto p = std::make_pair(1, 2); show(p.second);",
    "variant": "std::variant<int, char> v = 'c'; show(v.index());",
    "vector": "std::vector<int> v{3, 1}; show(v.size());",
    "bits/stdc++.h": "std::vector<int> v{2, 1}; std::sort(v.begin(), v.end()); show(v[0]);",
    "ext/pb_ds/assoc_container.hpp": "__gnu_pbds::gp_hash_table<int, int> t; t[1] = 2; show(t[1]);",
    "memory_resource": "std::pmr::vector<int> v{1}; show(v.size());",
}
HEADERS = [*USES, "format", "coroutine", "nonexistent", "unistd.h"]
COMMON = ["bits/stdc++.h", "iostream", "vector", "string", "algorithm", "stdio.h", "math.h", "map", "cassert"]
# Unusual spellings of an include; $ is the header's name.
SPELLINGS = [
    *["#include <$>"] * 6,
    *[
        "#include<$>",
        "# include <$>",
        "  #\tinclude\t<$>  ",
        '#include "$"',
        "#include <$> // the $",
        "#include <$>/* */",
    ],
    *["/* #include */ #include <$>", "#include /* a */ <$>", "#include \\\n<$>", "#inc\\\nlude <$>", "#import <$>"],
    *[
        "#include_next <$>",
        "%:include <$>",
        "#define HEADER <$>\n#include HEADER",
        "#include <$> junk",
        "#include < $>",
    ],
    *["#if __has_include(<$>)\n#include <$>\n#endif", "#if 0\n#include <$>\n#endif", "#ifndef N\n#include <$>\n#endif"],
    *["// \\\n#include <$>", "/* a\n#include <$>\n*/", "/* a *\\\n/ #include <$>", "// a ??/\n#include <$>"],
    *['const char *raw = R"x(\n#include <$>\n)x";', "#include <$>\n#include <$>", "#include <./$>", "\v#include <$>"],
]
BETWEEN = [
    *[
        "",
        "using namespace std;",
        "using namespace std; // all",
        "using  namespace\tstd ;",
        "// a comment",
        "/* one */",
    ],
    *["#define int long long", "#define private public", "#define endl '\\n'", "#define NDEBUG", "#undef NDEBUG"],
    *['#pragma GCC optimize("O3")', '#pragma GCC target("avx2")', '#pragma GCC optimize("Ofast,unroll-loops")'],
    *["typedef long long ll;", "int early() { return 1; }", "namespace mine { int x; }", "#define max(a, b) 7", ";"],
    *["#define vector std_vector", "struct Early { int mutex; };", "#pragma once", "#line 100", "#undef assert"],
    *["using std::cout;", 'extern "C" {}', "/* unterminated? */ int unused;", "#define string char"],
]
PROBES = [
    "int mutex = 3; int read() { return mutex; }\nint main() { show(read()); }",
    "int lock = 4, future = 1; int read() { return lock + future; }\nint main() { show(read()); }",
    "int count = 1, data = 2, size = 3; int main() { show(::count + ::data + ::size); }",
    "int distance(int a, int b) { return a - b; }\nint main() { show(distance(1, 2)); }",
    "int gcd(int a, int b) { return b ? gcd(b, a % b) : a; }\nint main() { show(gcd(4, 6)); }",
    "int main() { show(sizeof(abs(-2.5))); }",
    "int main() { show(abs(-2.5) > 2.2); show(floor(2.5)); }",
    "#define CAT(a, b) a##b\nint CAT(mu, tex) = 2;\nint main() { show(CAT(mut, ex)); }",
    "#define CAT(a, b) a##b\nint main() { std::CAT(thr, ead) t([] {}); t.join(); show(1); }",
    "int mut\\\nex = 5;\nint main() { show(mutex); }",
    "int main() { show(__LINE__); show(sizeof(__FILE__)); show(__COUNTER__); show(__INCLUDE_LEVEL__); }",
    "#ifdef _GLIBCXX_MUTEX\nint main() { show(1); }\n#else\nint main() { show(2); }\n#endif",
    "#ifdef _GLIBCXX_REGEX\nint x = 1;\n#else\nint x = 2;\n#endif\nint main() { show(x); }",
    "#if defined(INT_MAX) && defined(EOF)\nint x = 1;\n#else\nint x = 2;\n#endif\nint main() { show(x); }",
    '#if __has_include(<regex>)\n#include <regex>\nint main() { std::regex r("a"); show(1); }\n#endif',
    "#include <bits/stdc++.h>\nint main() { std::map<int, int> m; m[1] = 1; show(m.size()); }",
    "#define NDEBUG\n#include <cassert>\nint main() { assert(false); show(1); }",
    "#undef NDEBUG\n#include <assert.h>\nint main() { assert(1 == 2); }",
    "#import <vector>\n#include <vector>\nint main() { std::vector<int> v(3); show(v.size()); }",
    "template <class T> struct Any { template <class U> operator U(); };\nint main() { show(sizeof(Any<int>)); }",
    "int main() { int a[3] = {1'0, 2, 3'0}; show(a[0] + a[2]); return 0; }",
    "int main() { return 3; }",
    "int main() { undeclared(); }",
    "int other();\nint main() { return other(); }",
    "int f() { return 1; }",
    "#include <nonexistent.h>\nint main() {}",
    "template <class T> auto twice(T x) { return x + x; }\nint main() { show(twice(4)); twice(nullptr); }",
    '#pragma GCC target("avx2")\nint main() { int s = 0; for (int i = 0; i < 99; i++) s += i * i; show(s); }',
    "struct S { private: int x; };\nint main() { S s; s.x = 1; show(s.x); }",
    "signed main() { int big = 1LL << 40; show(big > 0); }",
    "int main() { vector<int> v(2); cout << v.size() << endl; }",
]
SHOW = 'template <class T> void show(T x) { __builtin_printf("%g\\n", (double)x); }\n'

_include = st.builds(lambda how, name: how.replace("$", name), st.sampled_from(SPELLINGS), st.sampled_from(HEADERS))
_ordinary = st.sampled_from(COMMON).map(lambda name: f"#include <{name}>")
_line = st.one_of(_ordinary, _ordinary, _ordinary, _include, st.sampled_from(BETWEEN))
beginnings = st.one_of(
    st.lists(_ordinary, min_size=1, max_size=5),
    st.lists(st.one_of(_ordinary, st.sampled_from(BETWEEN[:6])), min_size=1, max_size=6),
    st.lists(_line, max_size=8),
)
_uses = st.lists(st.sampled_from(list(USES)), min_size=1, max_size=3).map(
    lambda names: "int main() {\n" + "\n".join(f"{{ {USES[name]} }}" for name in names) + "\n}"
)
bodies = st.one_of(_uses, st.sampled_from(PROBES))
C_BODIES = [
    'int main(void) { printf("%d\\n", 3); }',
    'int main(void) { __builtin_printf("%g\\n", sqrt(2.0)); }',
    'int main(void) { int class = 3, new = 2; __builtin_printf("%d\\n", class + new); }',
    'int main(void) { __builtin_printf("%d\\n", (int)strlen("abc")); }',
    "int main(void) { assert(0); }",
    "int main(void) { return missing(); }",
    'int main(void) { int a[2] = {2, 1}; __builtin_printf("%d\\n", a[1]); bool b; }',
]
_c_line = st.builds(
    lambda how, name: how.replace("$", name),
    st.sampled_from(SPELLINGS),
    st.sampled_from(["stdio.h", "stdlib.h", "math.h", "string.h", "assert.h", "stdbool.h", "bits/stdc++.h", "vector"]),
)
c_programs = st.builds(
    lambda lines, body: "\n".join([*lines, body]) + "\n", st.lists(_c_line, max_size=4), st.sampled_from(C_BODIES)
)


def program(lines: list[str], body: str, newline: str = "\n", mark: str = "") -> str:
    """The text: `mark` is put first (a byte-order mark), line ends become `newline`."""
    return mark + ("\n".join([*lines, SHOW + body]) + "\n").replace("\n", newline)
