"""The programs that `bench.py grader` grades: contest programs, and functions with the prologues that models write.

The frequencies of prologues are those that Qwen2.5-Coder-1.5B-Instruct wrote for MBXP-C++ (796 completions) and for
HumanEval-X C++ (656); the bodies are our own, with names and constants drawn anew. `real_tasks` reads completions of a
real model.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from data.sources.humaneval_x import INCLUDES
from pipeline.config import ConfigError
from pipeline.run_folder import read_json_lines
from pipeline.tasks.code import TASK as CODE
from pipeline.tasks.problem_sets import read_dataset
from rewards.grader.harness import whole_program
from rewards.grader.prologue import behind
from rewards.problem import Problem, Test

TESTS = 10


@dataclass(frozen=True, slots=True)
class Task:
    """A completion's code and its problem, as training hands them to the graders."""

    source: str
    problem: Problem

    @property
    def program(self) -> str:
        """The text that a compiler without the grader would get."""
        if not self.problem.tests_are_code:
            return self.source
        return f"{whole_program(self.source, self.problem)}\n\n{self.problem.tests[0].input}\n"


# Each kind: a program with the places $K (constant) and names a..e to be renamed, and the same computation in Python.
_HEAD = "#include <bits/stdc++.h>\nusing namespace std;\n"
_KINDS: list[tuple[str, Callable[[list[int], int], str]]] = []


def _kind(body: str) -> Callable[[Callable[[list[int], int], str]], Callable[[list[int], int], str]]:
    def keep(reference: Callable[[list[int], int], str]) -> Callable[[list[int], int], str]:
        _KINDS.append((_HEAD + body, reference))
        return reference

    return keep


@_kind("""
int main() {
    int n; cin >> n;
    vector<long long> items(n);
    for (auto &x : items) cin >> x;
    sort(items.begin(), items.end(), [](long long p, long long q) { return p > q; });
    long long total = 0;
    for (int i = 0; i < n; i += 2) total += items[i] * $K;
    cout << total << endl;
}
""")
def _sorted_sum(values: list[int], k: int) -> str:
    return str(sum(sorted(values, reverse=True)[::2]) * k)


@_kind("""
int main() {
    int n; scanf("%d", &n);
    map<int, int> items;
    for (int i = 0; i < n; i++) { int x; scanf("%d", &x); items[x % $K]++; }
    int best = 0, total = -1;
    for (auto &entry : items) if (entry.second > best) { best = entry.second; total = entry.first; }
    printf("%d %d\\n", total, best);
}
""")
def _most_frequent(values: list[int], k: int) -> str:
    rests = [value % k for value in values]
    best = max(rests.count(rest) for rest in rests)
    return f"{min(rest for rest in rests if rests.count(rest) == best)} {best}"


@_kind("""
struct Tree {
    int n; vector<long long> node;
    Tree(int n) : n(n), node(n + 1) {}
    void add(int i, long long x) { for (i++; i <= n; i += i & -i) node[i] += x; }
    long long sum(int i) { long long s = 0; for (; i > 0; i -= i & -i) s += node[i]; return s; }
};
int main() {
    ios::sync_with_stdio(false); cin.tie(nullptr);
    int n; cin >> n;
    Tree items(n);
    for (int i = 0; i < n; i++) { long long x; cin >> x; items.add(i, x + $K); }
    long long total = 0;
    for (int i = 1; i <= n; i++) total ^= items.sum(i);
    cout << total << '\\n';
}
""")
def _prefix_sums(values: list[int], k: int) -> str:
    total = running = 0
    for value in values:
        running += value + k
        total ^= running
    return str(total)


@_kind("""
int main() {
    int n; cin >> n;
    priority_queue<pair<int, int>, vector<pair<int, int>>, greater<>> items;
    for (int i = 0; i < n; i++) { int x; cin >> x; items.push({x, i}); }
    long long total = 0;
    while (items.size() > 1) {
        auto p = items.top(); items.pop();
        auto q = items.top(); items.pop();
        total = (total + p.first + q.first) % 1000000007;
        items.push({p.first + q.first + $K, 0});
    }
    cout << total << "\\n";
}
""")
def _merge_cost(values: list[int], k: int) -> str:
    import heapq

    heap = list(values)
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        one, other = heapq.heappop(heap), heapq.heappop(heap)
        total = (total + one + other) % 1000000007
        heapq.heappush(heap, one + other + k)
    return str(total)


@_kind("""
int main() {
    int n; cin >> n;
    vector<int> items(n);
    for (int i = 0; i < n; i++) cin >> items[i];
    vector<int> best;
    for (int x : items) {
        x += $K;
        auto place = lower_bound(best.begin(), best.end(), x);
        if (place == best.end()) best.push_back(x); else *place = x;
    }
    string total = to_string(best.size());
    reverse(total.begin(), total.end());
    cout << total << endl;
}
""")
def _increasing(values: list[int], k: int) -> str:
    import bisect

    best: list[int] = []
    for value in values:
        place = bisect.bisect_left(best, value)
        best[place : place + 1] = [value]
    return str(len(best))[::-1]


@_kind("""
long long solve(vector<int> &items, int left, int right) {
    if (right - left < 2) return 0;
    int middle = (left + right) / 2;
    long long total = solve(items, left, middle) + solve(items, middle, right);
    vector<int> merged;
    int i = left, j = middle;
    while (i < middle || j < right) {
        if (j == right || (i < middle && items[i] <= items[j])) merged.push_back(items[i++]);
        else { merged.push_back(items[j++]); total += middle - i; }
    }
    copy(merged.begin(), merged.end(), items.begin() + left);
    return total;
}
int main() {
    int n; cin >> n;
    vector<int> items(n);
    for (auto &x : items) cin >> x;
    cout << solve(items, 0, n) + $K << endl;
}
""")
def _inversions(values: list[int], k: int) -> str:
    return str(sum(a > b for i, a in enumerate(values) for b in values[i + 1 :]) + k)


def contest_tasks(count: int, seed: int = 0) -> list[Task]:
    """Different right contest programs, each with its problem of `TESTS` tests. Deterministic in the seed."""
    rng = random.Random(seed)
    tasks = []
    for index in range(count):
        body, reference = _KINDS[index % len(_KINDS)]
        k = rng.randrange(3, 100_000)
        source = body.replace("$K", str(k))
        for name in ("items", "total", "best", "merged", "place"):
            source = source.replace(name, f"{name}_{rng.randrange(10**6)}")
        tests = []
        for size in range(1, TESTS + 1):
            values = [rng.randrange(1000) for _ in range(10 * size)]
            tests.append(Test(f"{len(values)}\n{' '.join(map(str, values))}\n", reference(values, k) + "\n"))
        tasks.append(Task(source, Problem(f"bench-{index}", "", tuple(tests))))
    return tasks


class Programs:
    """What is graded in the place of completions of the problems of `contest_tasks`: the right program for even rows, a
    wrong one for odd rows, namely the right one of the next problem, whatever the number of problems.

    Every kind of program reads all input that there is and ends, so a wrong one costs what a right one costs. No two
    texts are alike, not even those of one row in two measurements: graders remember verdicts.
    """

    _numbers = count()

    def __init__(self, problems: int) -> None:
        tasks = contest_tasks(problems + 1)
        pairs = zip(tasks[:-1], tasks[1:], strict=True)
        self._sources = {task.problem.id: (task.source, following.source) for task, following in pairs}

    def of(self, row: int, problem: Problem) -> str:
        """A program for a row of that problem."""
        return f"{self._sources[problem.id][row % 2]}// {os.getpid()} {next(self._numbers)}\n"


# ---------------------------------------------------------------------- functions, as the benchmarks ask for them

MBXP_PROLOGUES = {
    "bits/stdc++.h": 689,
    "iostream": 21,
    "": 16,
    "iostream string": 6,
    "iostream vector": 5,
    "bits/stdc++.h bits/stdc++.h": 5,
}
HUMANEVAL_PROLOGUES = {
    "stdio.h string": 105,
    "stdio.h vector": 101,
    "stdio.h vector string": 69,
    "": 59,
    "stdio.h": 57,
    "stdio.h vector algorithm": 36,
    "stdio.h math.h vector": 35,
    "stdio.h string algorithm": 27,
}
_USING = "using namespace std;\n"
# Signature, body, a call with its expected result; $K is a constant, $a to $d are names.
_FUNCTIONS = (
    (
        "int count_multiples(vector<int> $a) {",
        "    int $b = 0;\n    for (int $c : $a) if ($c % $K == 0) $b++;\n    return $b;\n}\n",
        "count_multiples(vector<int>{0, 1, $K, 2 * $K}) == 3",
    ),
    (
        "string join_words(vector<string> $a) {",
        '    string $b;\n    for (size_t $c = 0; $c < $a.size(); $c++) {\n        if ($c > 0) $b += " ";\n'
        "        $b += $a[$c];\n    }\n    return $b + to_string($K);\n}\n",
        'join_words(vector<string>{"ab", "c"}) == "ab c$K"',
    ),
    (
        "vector<int> running(vector<int> $a) {",
        "    vector<int> $b;\n    int $d = $K;\n    for (int $c : $a) {\n        $d = max($d, $c);\n"
        "        $b.push_back($d);\n    }\n    return $b;\n}\n",
        "running(vector<int>{1, $K + 1, 2}) == vector<int>({$K, $K + 1, $K + 1})",
    ),
    (
        "bool is_palindrome(string $a) {",
        "    int $b = 0, $c = (int)$a.length() - 1;\n    while ($b < $c) {\n"
        "        if ($a[$b] != $a[$c]) return false;\n        $b++;\n        $c--;\n    }\n    return $K > 0;\n}\n",
        'is_palindrome("abcba") && !is_palindrome("ab")',
    ),
    (
        "vector<int> smallest(vector<int> $a, int $b) {",
        "    sort($a.begin(), $a.end());\n    vector<int> $c($a.begin(), $a.begin() + $b);\n    $c.push_back($K);\n"
        "    return $c;\n}\n",
        "smallest(vector<int>{3, 1, 2}, 2) == vector<int>({1, 2, $K})",
    ),
    (
        "long long power_mod(long long $a, long long $b) {",
        "    long long $c = 1;\n    while ($b > 0) {\n        if ($b & 1) $c = $c * $a % ($K + 1);\n"
        "        $a = $a * $a % ($K + 1);\n        $b >>= 1;\n    }\n    return $c;\n}\n",
        "power_mod(1, 10) == 1",
    ),
)
_TEST_MAINS = {
    "mbxp": "int main() {\n    bool x0 = $call;\n    if (!x0) {\n        "
    'throw runtime_error("Exception -- test case 0 did not pass.");\n    }\n    return 0;\n}\n',
    "humaneval-x": "#undef NDEBUG\n#include<assert.h>\nint main() {\n    assert ($call);\n}\n",
}


def function_tasks(kind: str, prologues: Mapping[str, int], count: int, seed: int = 0) -> list[Task]:
    """Different right functions behind prologues of these frequencies. Deterministic in the seed.

    kind: "mbxp" or "humaneval-x", whose lines stand before each program as its harness puts them there.
    """
    rng = random.Random(f"{kind}/{seed}")
    head = "#include <bits/stdc++.h>\n" + _USING if kind == "mbxp" else INCLUDES + "#include<stdio.h>\n" + _USING
    tasks = []
    drawn = rng.choices(list(prologues), list(prologues.values()), k=count)
    for index, prologue in enumerate(drawn):
        texts = _FUNCTIONS[index % len(_FUNCTIONS)]
        signature, body, call = (_renamed(text, f"{kind}/{seed}/{index}") for text in texts)
        includes = "".join(f"#include <{name}>\n" for name in prologue.split())
        source = f"{includes}{_USING}\n{signature}\n{body}" if includes else f"{signature}\n{body}"
        test = Test(_TEST_MAINS[kind].replace("$call", call), "")
        preamble = behind(head, f"{signature}\n")
        tasks.append(Task(source, Problem(f"{kind}-{index}", "", (test,), preamble=preamble, tests_are_code=True)))
    return tasks


def _renamed(text: str, seed: str) -> str:
    """With constants and names drawn by the seed: the same ones in all parts of a function."""
    names = random.Random(seed)
    text = text.replace("$K", str(names.randrange(3, 30_000)))
    for name in "abcd":
        text = text.replace(f"${name}", f"{name}_{names.randrange(10**6)}")
    return text


def real_tasks(dataset: str, completions: Path) -> list[Task]:
    """The programs of a model's completions: lines of {problem (or task_id), completion}; those without code are left
    out.

    Raises `ConfigError` where a problem is unknown or no completion holds a program.
    """
    problems = {problem.id: problem for problem in read_dataset(dataset, CODE)}
    by_task = {name.partition("/")[2]: problem for name, problem in problems.items()}
    tasks = []
    for record in read_json_lines(completions):
        name = str(record.get("problem") or record.get("task_id"))
        problem = problems.get(name) or by_task.get(name)
        if problem is None:
            raise ConfigError(f"--completions {completions}: problem {name} is not in {dataset}")
        if source := CODE.extract(record["completion"], problem):
            tasks.append(Task(source, problem))
    if not tasks:
        raise ConfigError(f"--completions {completions}: no completion holds a program")
    return tasks


def workloads(programs: int, seed: int = 0) -> dict[str, Sequence[Task]]:
    """The three kinds of programs, by name."""
    return {
        "contest": contest_tasks(programs, seed),
        "mbxp": function_tasks("mbxp", MBXP_PROLOGUES, programs, seed),
        "humaneval-x": function_tasks("humaneval-x", HUMANEVAL_PROLOGUES, programs, seed),
    }
