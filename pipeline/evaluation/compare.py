"""Two policies on the same problems: the difference, its p-value, one sentence; and how many problems a gain needs.

Works on counts, (accepted, graded) of each problem, so evaluations made on different days or machines can be compared
from their `eval.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.config import ConfigError
from pipeline.evaluation.statistics import (
    LEVEL,
    POWER,
    compare,
    detectable_gain,
    paired_deviation,
    pass_values,
    problems_needed,
    within_variance,
)

Counts = Mapping[str, tuple[int, int]]  # (accepted, graded) by the problem's id
Clusters = Mapping[str, str]  # the cluster of a problem, by its id
POWER_SAMPLES = (1, 4, 16)


def compare_counts(
    names: tuple[str, str], a: Counts, b: Counts, ks: Sequence[int], clusters: Clusters | None = None
) -> dict[str, Any]:
    """B against A for every k, on the problems that both have k graded completions of; None where there are none.

    clusters: of problems that are alike; a problem that it does not name is a cluster of its own. Raises `ConfigError`
    where the two share no problem.
    """
    shared = [problem for problem in a if problem in b]
    if not shared:
        raise ConfigError("--compare: the two evaluations share no problem; evaluate both on the same data set")
    sides = [[side[problem] for problem in shared] for side in (a, b)]
    result: dict[str, Any] = {"names": list(names), "problems_of_one_side_only": len(set(a) ^ set(b))}
    for k in ks:
        pairs = zip(shared, *(pass_values(side, k) for side in sides), strict=True)
        known = [(problem, x, y) for problem, x, y in pairs if x is not None and y is not None]
        if not known:
            result[f"pass@{k}"] = None
            continue
        first, second = [x for _, x, _ in known], [y for _, _, y in known]
        compared = compare(first, second, clusters=[(clusters or {}).get(problem, problem) for problem, _, _ in known])
        result[f"pass@{k}"] = asdict(compared) | {
            "a": sum(first) / len(first),
            "b": sum(second) / len(second),
            "proven": compared.proven,
        }
    samples = max(1, round(sum(n for _, n in sides[0]) / len(shared)))
    deviation = paired_deviation(within_variance([count for side in sides for count in side]), samples)
    result["detectable_gain"] = detectable_gain(len(shared), deviation)
    found = result[f"pass@{min(ks)}"]
    if clusters and found:  # they widen the interval, which is about four errors wide
        seen = detectable_gain(1, found["width"] / 4)
        result["detectable_gain"] = max(result["detectable_gain"], seen)
    result["conclusion"] = conclusion(result, min(ks))
    return result


def conclusion(result: Mapping[str, Any], k: int) -> str:
    """One sentence that claims no more than the test of pass@k allows."""
    (a, b), c = result["names"], result[f"pass@{k}"]
    if c is None:
        return (
            f"Nothing is known of a difference between {a} and {b}: no problem has {k} graded "
            f"completion{'s' * (k > 1)} on both sides."
        )
    figures = (
        f"pass@{k} {c['a']:.3f} against {c['b']:.3f}, {c['difference']:+.3f} (95 % interval [{c['low']:+.3f}, "
        f"{c['high']:+.3f}], p = {c['p_value']:.2g}, {c['method']}, {c['problems']} problems)"
    )
    if c["proven"]:
        return f"{b} solves {'more' if c['difference'] > 0 else 'fewer'} problems than {a}: {figures}."
    same = "they agree on every problem" if c["only_a"] == c["only_b"] == 0 else f"{b} is better on {c['only_b']} "
    if c["only_a"] or c["only_b"]:
        same += f"problems and worse on {c['only_a']}"
    seen = result["detectable_gain"]
    below = f"a gain below about {seen:.3f}" if seen < 1 else "any gain"
    missed = f"; {below} would go unnoticed with so few problems"
    return f"No difference between {a} and {b} is proven: {figures}; {same}{missed}."


def stored_counts(path: Path) -> tuple[str, dict[str, tuple[int, int]], dict[str, Any]]:
    """Name, counts and record of the policy in an `eval.json` (the checkpoint's, where it also holds the base's).

    Raises `ConfigError` for a file that is not one.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        per_problem = record["per_problem"]
        name = next(name for name in ("checkpoint", "b", "baseline", "a") if name in per_problem["counts"])
        rows = zip(per_problem["ids"], per_problem["counts"][name], strict=True)
        counts = {str(problem): (int(accepted), int(graded)) for problem, (accepted, graded) in rows}
        if any(not 0 <= accepted <= graded for accepted, graded in counts.values()):
            raise ValueError("more completions are right than were graded")
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        raise ConfigError(f"{path}: not an evaluation written by scripts/eval.py (eval.json)") from None
    return f"{name} of {path}", counts, record


def power_lines(gain: float, rate: float, counts: Sequence[tuple[int, int]] | None) -> list[str]:
    """How many problems show a gain of pass@1, by completions per problem.

    counts: of an evaluation, which tell how uncertain single problems are; without them every problem is taken to be
    solved at `rate`, the worst case. Raises `ConfigError` for a gain beyond a rate of 1.
    """
    if counts:
        rate = sum(c for c, _ in counts) / max(1, sum(n for _, n in counts))
        within = within_variance(counts)
    if gain > 1 - rate + 1e-9:
        raise ConfigError(f"--power {gain:g}: from pass@1 {rate:.2f} a gain of at most {1 - rate:.2f} is possible")
    if not counts:
        risen = min(1.0, rate + gain)
        within = max((rate * (1 - rate) + risen * (1 - risen)) / 2, 1e-6)
    text = [
        f"to detect a rise of pass@1 by {gain:g} from {rate:.2f} with power {POWER:.0%} at the {LEVEL:.0%} level, "
        f"paired on the same problems, if it rises equally on all of them:"
    ]
    for samples in POWER_SAMPLES:
        problems = problems_needed(gain, paired_deviation(within, samples))
        text.append(f"  {problems:7,} problems with {samples} completion{'s' * (samples > 1)} each on each side")
    return text


def power_report(gain: float, rate: float, checkpoints: Sequence[Path]) -> list[str]:
    """The lines of `--power`, from a stored evaluation where one is given."""
    if len(checkpoints) > 1:
        raise ConfigError(f"--power {gain:g}: give one stored evaluation, not {len(checkpoints)}")
    counts = None
    for path in checkpoints:
        counts = list(stored_counts(path / "eval.json" if path.is_dir() else path)[1].values())
    return power_lines(gain, rate, counts)


def compare_files(a: Path, b: Path, ks: Sequence[int]) -> dict[str, Any]:
    """Compare two stored evaluations. Raises `ConfigError` where they were not sampled alike."""
    (name_a, counts_a, record_a), (name_b, counts_b, record_b) = stored_counts(a), stored_counts(b)
    for setting in ("dataset", "temperature"):
        if record_a.get(setting) != record_b.get(setting):
            raise ConfigError(
                f"--compare: {a} has {setting} {record_a.get(setting)}, {b} has {record_b.get(setting)}; "
                f"evaluate both alike"
            )
    clusters = [record["per_problem"].get("clusters") or {} for record in (record_a, record_b)]
    result = compare_counts((name_a, name_b), counts_a, counts_b, ks, clusters[0] | clusters[1])
    for k in ks:
        if result[f"pass@{k}"] is None:
            raise ConfigError(f"--compare: no problem has {k} graded completions on both sides; lower --pass-at")
    return result


def comparison_lines(comparison: dict[str, Any] | None) -> list[str]:
    """The difference for every k, then the conclusion."""
    if comparison is None:
        return []
    text = []
    for key, c in comparison.items():
        if key.startswith("pass@") and c:
            text.append(
                f"{'difference':12}{key:8}{c['difference']:+.3f}  95 % interval [{c['low']:+.3f}, {c['high']:+.3f}], "
                f"p = {c['p_value']:.2g} ({c['method']}); better on {c['only_b']} problems, worse on {c['only_a']}"
            )
    return [*text, comparison["conclusion"]]
