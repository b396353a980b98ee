"""Converts a published data set to problems as JSON lines: filters, duplicates, overlap with an evaluation set,
verification, split.

Everything that is left out is written to `FILE.dropped.jsonl` with its reason, so that the numbers can be accounted
for."""

from __future__ import annotations

import math
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.difficulty import parse_windows
from data.overlap import fingerprint, grams, groups, shared_grams
from data.problems import DatasetError, read_problems, write_problems
from data.settings import Preparation
from data.sources import Loaded, Skip, convert_record, find_source, read_records
from data.sources.luogu import Unparsable
from rewards.grader.harness import grade
from rewards.grader.needs import missing_need
from rewards.grader.pool import GraderPool
from rewards.problem import LANGUAGES, Problem, Test
from rewards.verdict import Status, Verdict
from storage.files import write_json_lines

PYTHON_TIME_FACTOR = 5  # time limits are meant for C++
CHINESE = re.compile(r"[\u3400-\u9fff]")
JAPANESE = re.compile(r"[\u3040-\u30ff]")
RUSSIAN = re.compile(r"[\u0400-\u04ff]")
LETTER = re.compile(r"[^\W\d_]")


@dataclass
class Outcome:
    """What was kept, and a record for everything that was not."""

    kept: list[Loaded] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    unparsable: list[dict[str, Any]] = field(default_factory=list)

    def drop(self, problem: Problem, reason: str, **more: Any) -> None:
        self.dropped.append({"id": problem.id, "reason": reason, "source": problem.source} | more)

    def keep_if(self, test: Callable[[Loaded], str | None]) -> None:
        """Keep what has no reason against it."""
        kept = []
        for loaded in self.kept:
            reason = test(loaded)
            if reason is None:
                kept.append(loaded)
            else:
                self.drop(loaded.problem, reason)
        self.kept = kept


def prepare_dataset(settings: Preparation) -> Counter[str]:
    """Convert, filter and write; returns how many records had which fate. Raises `DatasetError` where nothing is
    left."""
    out = Path(settings.out)
    evaluation = [problem for path in settings.against for problem in read_problems(path)]
    outcome = convert(settings)
    if not (outcome.kept or outcome.dropped or outcome.unparsable):
        raise DatasetError(f"{settings.source}: {settings.location} has no records; nothing is written")
    outcome.keep_if(lambda loaded: _filter(loaded.problem, settings))
    outcome.keep_if(_unmet_need)
    drop_duplicates(outcome)
    drop_overlap(outcome, evaluation)
    if settings.max_samples is not None and len(outcome.kept) > settings.max_samples:
        random.Random(settings.seed).shuffle(outcome.kept)
        for loaded in outcome.kept[settings.max_samples :]:
            outcome.drop(loaded.problem, "more than --max-samples")
        outcome.kept = outcome.kept[: settings.max_samples]
    if settings.verify and any(loaded.solutions for loaded in outcome.kept):
        verify(outcome, settings)
    write_json_lines(out.with_name(f"{out.name}.dropped.jsonl"), outcome.dropped)
    if outcome.unparsable:
        write_json_lines(out.with_name("failed_extraction.jsonl"), outcome.unparsable)
    counts = Counter({"dropped": sum("tests" not in record for record in outcome.dropped)})
    problems = unique_ids([loaded.problem for loaded in outcome.kept])
    if not problems:
        raise DatasetError(f"{settings.source}: no problem is left; {out.name}.dropped.jsonl says why")
    train, held_out = split(problems, settings.held_out, settings.seed)
    if settings.held_out:
        write_problems(held_out_path(out), held_out)
    write_problems(out, train)
    return counts + Counter({"kept": len(train), "held out": len(held_out)})


def held_out_path(out: Path) -> Path:
    """problems.jsonl → problems.held_out.jsonl"""
    return out.with_name(f"{out.stem}.held_out{out.suffix}")


def convert(settings: Preparation) -> Outcome:
    """Read every record and turn it into a problem, tests within the limits of size and number."""
    source = find_source(settings.source)
    outcome = Outcome()
    if source.generate and settings.location == "generated":
        made = source.generate("train", settings.max_samples or 2000, settings.seed)
        outcome.kept = [Loaded(problem) for problem in made]
        return outcome
    records = read_records(source, settings.location, settings.split, settings.config)
    for where, record in tqdm(records, desc=f"reading {source.name}", unit=" records"):
        try:
            loaded = convert_record(source, record)
        except Skip as reason:
            outcome.dropped.append({"where": where, "reason": str(reason)})
            if isinstance(reason, Unparsable):
                outcome.unparsable.append({"where": where, "reason": str(reason), "record": dict(record)})
            continue
        problem, left_out = _trimmed(loaded.problem, settings)
        for reason_of_tests, count in left_out.items():
            outcome.drop(problem, f"{count} tests: {reason_of_tests}", tests=count)
        if loaded.problem.tests and not problem.tests:
            outcome.drop(problem, "no test is left")
            continue
        outcome.kept.append(replace(loaded, problem=problem))
    return outcome


def _trimmed(problem: Problem, settings: Preparation) -> tuple[Problem, dict[str, int]]:
    """Without tests that are too large; of too many, the samples and others spread over the sizes."""
    tests, left_out = list(problem.tests), {}
    if (limit := settings.max_test_bytes) is not None:
        fitting = [test for test in tests if _bytes(test) <= limit]
        left_out["larger than --max-test-bytes"] = len(tests) - len(fitting)
        tests = fitting
    if settings.max_tests is not None and len(tests) > settings.max_tests:
        chosen = spread(tests, settings.max_tests)
        left_out["more than --max-tests"] = len(tests) - len(chosen)
        tests = chosen
    return replace(problem, tests=tuple(tests)), {reason: count for reason, count in left_out.items() if count}


def _bytes(test: Test) -> int:
    return len(test.input.encode("utf-8", "surrogateescape")) + len(test.output.encode("utf-8", "surrogateescape"))


def spread(tests: Sequence[Test], count: int) -> list[Test]:
    """At most half samples; the others at even steps through the sizes, the largest among them. The order stays."""
    samples = [i for i, test in enumerate(tests) if test.public][: max(1, count // 2)]
    others = sorted((i for i in range(len(tests)) if i not in samples), key=lambda i: len(tests[i].input))
    wanted = min(count - len(samples), len(others))
    step = len(others) / wanted if wanted else 1.0
    picked = [others[len(others) - 1 - math.floor(k * step)] for k in range(wanted)]
    return [tests[i] for i in sorted([*samples, *picked])]


def _filter(problem: Problem, settings: Preparation) -> str | None:
    """Why a problem is not wanted, or None."""
    if settings.only_sources and problem.source not in settings.only_sources:
        return f"source {problem.source or 'unknown'} is not among --source"
    if settings.difficulty is not None and not parse_windows(settings.difficulty)(problem.difficulty):
        return f"difficulty {problem.difficulty or 'unknown'} is outside the window"
    if len(problem.tests) < settings.min_tests:
        return f"{len(problem.tests)} tests are fewer than --min-tests"
    if settings.text_language is not None and text_language(problem.statement) != settings.text_language:
        return f"the text is not in {settings.text_language}"
    return None


def _unmet_need(loaded: Loaded) -> str | None:
    """What this machine lacks to grade the problem; said at once, because installing it brings the problem back."""
    reason = missing_need(loaded.problem)
    if reason:
        print(f"{loaded.problem.id} cannot be graded on this machine and is skipped: {reason}", file=sys.stderr)
    return reason


def text_language(text: str) -> str:
    """'zh', 'ja' or 'ru' where a tenth of the letters are of that writing, else 'en': a guess from the letters
    alone."""
    letters = max(1, len(LETTER.findall(text)))
    if len(JAPANESE.findall(text)) / letters > 0.1:
        return "ja"
    if len(CHINESE.findall(text)) / letters > 0.1:
        return "zh"
    return "ru" if len(RUSSIAN.findall(text)) / letters > 0.1 else "en"


def drop_duplicates(outcome: Outcome) -> None:
    """Keep the first of problems that are copies."""
    first: dict[str, str] = {}

    def reason(loaded: Loaded) -> str | None:
        key = fingerprint(loaded.problem)
        if key in first:
            return f"a copy of {first[key]}"
        first[key] = loaded.problem.id
        return None

    outcome.keep_if(reason)


def drop_overlap(outcome: Outcome, evaluation: Sequence[Problem]) -> None:
    """Drop what is in the evaluation set, or shares 13 words in a row with it that are not a common phrase."""
    if not evaluation:
        return
    copies = {fingerprint(problem): problem.id for problem in evaluation}
    count = len(outcome.kept)
    all_grams = shared_grams([grams(loaded.problem) for loaded in outcome.kept] + [grams(p) for p in evaluation])
    owner = {gram: problem.id for problem, found in zip(evaluation, all_grams[count:], strict=True) for gram in found}
    overlap = {id(loaded): found & owner.keys() for loaded, found in zip(outcome.kept, all_grams[:count], strict=True)}

    def reason(loaded: Loaded) -> str | None:
        if (key := fingerprint(loaded.problem)) in copies:
            return f"a copy of {copies[key]} of the evaluation set"
        if shared := overlap[id(loaded)]:
            return f"shares {len(shared)} 13-grams with {owner[min(shared)]} of the evaluation set"
        return None

    outcome.keep_if(reason)


def verify(outcome: Outcome, settings: Preparation) -> None:
    """Grade the reference solutions. A problem stays if one passes and none that ends in time is judged wrong."""
    futures: dict[int, list[Future[Verdict]]] = {}
    with GraderPool(settings.workers, unsafe=settings.unsafe_grader) as pool:
        waiting = 0
        for loaded in outcome.kept:
            futures[id(loaded)] = [
                grade(pool, source, _limits_for(loaded.problem, language))
                for language, source in loaded.solutions
                if language in LANGUAGES and loaded.problem.tests
            ]
            waiting += len(futures[id(loaded)])
        with tqdm(total=waiting, desc="verifying", unit=" solutions") as bar:
            for found in futures.values():
                for future in found:
                    future.result()
                    bar.update(1)

    def reason(loaded: Loaded) -> str | None:
        verdicts = [future.result() for future in futures[id(loaded)]]
        counted = [v for v in verdicts if v.status not in (Status.NO_VERDICT, Status.COMPILE_ERROR)]
        if not verdicts:
            return None
        wrong = next((v for v in counted if v.status is Status.WRONG_ANSWER), None)
        if wrong is not None:
            return f"a reference solution is judged {wrong.status} ({wrong.passed}/{wrong.total} tests)"
        if not any(v.accepted for v in counted):
            return f"no reference solution passes ({', '.join(v.status for v in verdicts)})"
        return None

    outcome.keep_if(reason)


def _limits_for(problem: Problem, language: str) -> Problem:
    factor = PYTHON_TIME_FACTOR if language == "python" else 1
    return replace(problem, language=language, time_limit=problem.time_limit * factor)


def split(problems: list[Problem], share: float, seed: int) -> tuple[list[Problem], list[Problem]]:
    """(train, held out). Problems that share a passage stay together, so nothing leaks; the share is met as nearly as
    whole groups allow."""
    if not share:
        return problems, []
    members: dict[int, list[Problem]] = {}
    for problem, group in zip(problems, groups(problems), strict=True):
        members.setdefault(group, []).append(problem)
    order = list(members.values())
    random.Random(seed).shuffle(order)
    wanted = max(1, round(share * len(problems)))
    held_out: list[Problem] = []
    train: list[Problem] = []
    for group_problems in order:
        target = held_out if len(held_out) + len(group_problems) <= wanted else train
        target += group_problems
    if not held_out or not train:
        raise DatasetError(
            f"--held-out {share}: the {len(problems)} problems form one overlapping group and cannot be split"
        )
    return train, held_out


def unique_ids(problems: Sequence[Problem]) -> list[Problem]:
    """Different problems with one id get `-2`, `-3` behind it, or the next number that makes no other's id."""
    taken, seen = {problem.id for problem in problems}, Counter[str]()
    found = []
    for problem in problems:
        seen[problem.id] += 1
        if seen[problem.id] > 1:
            while (new := f"{problem.id}-{seen[problem.id]}") in taken:
                seen[problem.id] += 1
            taken.add(new)
            problem = replace(problem, id=new)
        found.append(problem)
    return found
