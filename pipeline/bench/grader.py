"""The measurements behind `python scripts/bench.py grader`: the pool beside the naive way and beside the compiler
alone.

    naive   `g++ -O2` per program, then `subprocess.run` with pipes per test; as many threads as cores
    floor   the pool's own compiler command with the precompiled header, without sandbox, tests or comparison
    lean    the same with the lean header, where the pool would use it (see `rewards/header.py`)
    pool    `GraderPool`, everything it does

The four take turns on small batches, so that a change of the machine's load hits all of them; medians over the batches
count. All programs are different sources: six kinds of contest program, with names and constants drawn anew. Every
process runs at the niceness of the graders.

The cost per test is measured inside one sandbox: the pool's CPU and wall time for N tests of a program that does
nothing, less the time of a bare exec of the same program.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pipeline.bench.form import Row, row
from rewards.header import FULL, LEAN, identifiers, lean_names, lease_headers
from rewards.judge import Judge, JudgeConfig
from rewards.pool import GraderPool
from rewards.problem import Problem, Test
from rewards.sandbox import choose_sandbox
from rewards.storage import ScratchFolder, scratch_root
from rewards.toolchains import Toolchain, find_toolchain
from rewards.worker import NICENESS

TESTS = 10
BATCH = 8
Task = tuple[str, Problem]
Batch = list[tuple[int, Task]]

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


def make_tasks(count: int, seed: int = 0) -> list[Task]:
    """Different right programs, each with its problem of `TESTS` tests. Deterministic in the seed."""
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
        tasks.append((source, Problem(f"bench-{index}", "", tuple(tests))))
    return tasks


def _naive(folder: Path, index: int, task: Task) -> bool:
    source, problem = task
    path = folder / f"naive-{index}"
    path.with_suffix(".cpp").write_text(source)
    subprocess.run(["g++", "-O2", "-std=c++17", f"{path}.cpp", "-o", str(path)], check=True, capture_output=True)
    for test in problem.tests:
        done = subprocess.run([str(path)], input=test.input, capture_output=True, text=True, timeout=10, check=False)
        if done.returncode or done.stdout.split() != test.output.split():
            return False
    path.unlink()
    return True


def _floor(folder: Path, index: int, task: Task, command: Sequence[str]) -> bool:
    path = folder / f"floor-{index}"
    path.with_suffix(".cpp").write_text(task[0])
    words = {"{source}": f"{path}.cpp", "{program}": str(path)}
    subprocess.run([words.get(word, word) for word in command], check=True, capture_output=True)
    path.unlink()
    return True


def _with_header(toolchain: Toolchain, folder: Path) -> list[str]:
    command: list[str] = []
    for word in toolchain.compile:
        command += ["-I", str(folder)] if word == "{flags}" else [word]
    return command


def _seconds(work: Callable[[], list[bool]]) -> float:
    began = time.perf_counter()
    if not all(work()):
        raise RuntimeError("a benchmark program was judged wrong; the measurement is void")
    return time.perf_counter() - began


def _throughput_rows(programs: int) -> list[Row]:
    tasks = make_tasks(-(-programs // BATCH) * BATCH)
    toolchain = find_toolchain("cpp")
    spent: dict[str, list[float]] = {"naive": [], "floor": [], "lean": [], "pool": []}
    with (
        GraderPool(quiet=True) as pool,
        lease_headers(toolchain) as header,
        tempfile.TemporaryDirectory(dir=scratch_root()) as name,
        ThreadPoolExecutor(pool.workers) as threads,
    ):
        folder = Path(name)
        floor = _with_header(toolchain, header.folder / FULL)
        lean = _with_header(toolchain, header.folder / LEAN)
        names = lean_names(header.folder) or frozenset()

        def lean_command(task: Task) -> list[str]:
            return lean if names.isdisjoint(identifiers(task[0])) else floor

        def naive(batch: Batch) -> list[bool]:
            return list(threads.map(lambda one: _naive(folder, one[0], one[1]), batch))

        def compile_full(batch: Batch) -> list[bool]:
            return list(threads.map(lambda one: _floor(folder, one[0], one[1], floor), batch))

        def compile_lean(batch: Batch) -> list[bool]:
            return list(threads.map(lambda one: _floor(folder, one[0], one[1], lean_command(one[1])), batch))

        def pooled(batch: Batch) -> list[bool]:
            return [f.result().accepted for f in [pool.submit(*task) for _, task in batch]]

        ways = {"naive": naive, "floor": compile_full, "lean": compile_lean, "pool": pooled}
        for start in range(0, len(tasks), BATCH):
            batch = list(enumerate(tasks[start : start + BATCH], start))
            order = list(ways)
            random.Random(start).shuffle(order)
            for way in order:
                spent[way].append(_seconds(partial(ways[way], batch)))
            print(f"\r{start + len(batch)}/{len(tasks)} programs", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        workers = pool.workers
    rate = {way: BATCH / statistics.median(seconds) for way, seconds in spent.items()}
    about = f"{len(tasks)} different programs, {TESTS} tests each, {workers} graders"
    return [
        row(f"pool against the naive way ({about})", rate["pool"], "programs/s", baseline=rate["naive"], at_least=4.0),
        row("pool against the compile floor", rate["pool"], "programs/s", baseline=rate["floor"], at_least=0.85),
        row("pool against the floor of the lean header", rate["pool"], "programs/s", baseline=rate["lean"]),
    ]


_NOTHING = "int main() {}\n"
_OVERHEAD_TESTS = 100
_OVERHEAD_ROUNDS = 9


def _bare_exec_seconds(program: Path, count: int) -> float:
    """The program itself, `count` times, started in the cheapest way that Python has."""
    began = time.perf_counter()
    for _ in range(count):
        pid = os.posix_spawn(program, [str(program)], {})
        os.waitpid(pid, 0)
    return time.perf_counter() - began


def _overhead_rows() -> list[Row]:
    """Milliseconds per test beyond the program itself, including input, output, comparison and verdict."""
    tests = tuple(Test(f"{index}\n", "") for index in range(_OVERHEAD_TESTS))
    toolchain = find_toolchain("cpp")
    rows = []
    for tier in ("A", "B"):
        try:
            sandbox, _ = choose_sandbox(tier=tier)
        except RuntimeError as error:
            print(f"tier {tier} is not measured: {error}", file=sys.stderr)
            continue
        with ScratchFolder("bench") as folder:
            judge = Judge(JudgeConfig(sandbox, "g++", "c++17"), folder)
            job = folder / "job"
            job.mkdir()
            judge._compile(_NOTHING, toolchain, job)
            many, one = Problem("many", "", tests), Problem("one", "", tests[:1])
            ours, bare = [], []
            for _ in range(_OVERHEAD_ROUNDS):
                began = time.perf_counter()
                judge._run_tests(one, toolchain, job)
                middle = time.perf_counter()
                _clear(job)
                judge._run_tests(many, toolchain, job)
                ended = time.perf_counter()
                _clear(job)
                ours.append((ended - middle - (middle - began)) / (_OVERHEAD_TESTS - 1))
                bare.append(_bare_exec_seconds(job / toolchain.program_name, _OVERHEAD_TESTS) / _OVERHEAD_TESTS)
        extra = statistics.median(ours) - statistics.median(bare)
        rows.append(row(f"tier {tier}: one test beyond the program itself (median)", 1000 * extra, "ms", at_most=2.0))
    return rows


def _clear(job: Path) -> None:
    for path in (job / "out").iterdir():
        path.unlink()
    (job / "out").rmdir()


def measure(programs: int) -> list[Row]:
    """All rows. Raises `GraderError` when no grader can be had."""
    load = os.getloadavg()[0]
    if load > 0.5:  # graders are sessions of their own, which a scheduler may favour against other work
        print(f"other work is running here (load {load:.1f}): the ratios are not reliable", file=sys.stderr)
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    return _throughput_rows(programs) + _overhead_rows()
