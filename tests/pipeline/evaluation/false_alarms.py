"""How often two evaluations of one policy are called different: split one large evaluation at random, many times.

python scripts/eval.py --model starter --num-samples 8 --limit 200 --out same/eval.json
python tests/pipeline/evaluation/false_alarms.py same/eval-baseline.jsonl

Each split gives either side half of every problem's completions. Prints one line a split; the exit code is 1 with more
than 2 false alarms in 20, which chance alone gives in 8 of 100 cases.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("completions", type=Path)
    parser.add_argument("--splits", type=int, default=20)
    options = parser.parse_args()
    from pipeline.evaluation.compare import compare_counts
    from pipeline.run_folder import read_json_lines

    accepted: dict[str, list[bool]] = defaultdict(list)
    for row in read_json_lines(options.completions):
        if row["verdict"] != "NO_VERDICT":
            accepted[row["problem"]].append(row["verdict"] == "ACCEPTED")
    alarms = 0
    for split in range(options.splits):
        numbers = random.Random(split)
        first: dict[str, tuple[int, int]] = {}
        second: dict[str, tuple[int, int]] = {}
        for problem, values in accepted.items():
            shuffled = numbers.sample(values, len(values))
            half = len(values) // 2
            first[problem] = (sum(shuffled[:half]), half)
            second[problem] = (sum(shuffled[half : 2 * half]), half)
        result = compare_counts(("one half", "the other half"), first, second, [1])
        alarms += result["pass@1"]["proven"]
        print(f"{split + 1:3}: {result['conclusion']}")
    print(f"{alarms} false alarms in {options.splits} comparisons of {len(accepted)} problems")
    return alarms > 2 * options.splits / 20


if __name__ == "__main__":
    raise SystemExit(main())
