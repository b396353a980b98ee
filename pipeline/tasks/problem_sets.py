"""The problems of a run: to train on, to watch it by, to judge it by; from files, published data sets, or generators.

Held-out problems have one purpose each (`data/purposes.py`).
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from data.difficulty import parse_windows
from data.overlap import fingerprint
from data.problems import read_problems
from data.purposes import PURPOSES
from pipeline.config import ConfigError, RunConfig
from pipeline.tasks import TASKS, Task
from rewards.grader.needs import missing_need
from rewards.problem import Problem

HELD_OUT_SHARE = 0.1
GENERATED_TRAIN_PROBLEMS = 2000
UNDIVIDED = "all"  # held-out problems of runs made before purposes were told apart
HELD_OUT_SEED = 1_000_003  # the held-out problems do not depend on the run's seed: runs stay comparable


@dataclass(frozen=True)
class ProblemSets:
    """No two of the sets share a problem; for the starter `train` shares no family with the others.

    `held_out` are those that the run is judged by before and after (`eval_split`), `validation` those on which it is
    watched and its best checkpoint is chosen; one set for both where `eval_split` is "all". `origin` tells which of the
    run's data sets (0 for the first) a training problem, by its id, comes from.
    """

    train: list[Problem]
    held_out: list[Problem]
    origin: dict[str, int] = field(default_factory=dict)
    validation: list[Problem] = field(default_factory=list)


def load_problem_sets(config: RunConfig) -> ProblemSets:
    """Read or generate all sets. A data set gives up a tenth of its problems, a third of them for each purpose; where
    an `eval_dataset` is the test set, half for each other purpose.

    Raises `DatasetError` for a bad file and `ConfigError` for one too small to split.
    """
    task = TASKS[config.task]
    seed = config.seed if config.shuffle_seed is None else config.shuffle_seed
    count = len(config.datasets)
    shares = config.weights or [1.0] * count
    parts = _named_apart([_training_and_held_out(name, config, task, seed) for name in config.datasets])
    foreign = UNDIVIDED if config.eval_split == UNDIVIDED else "test"  # what an eval_dataset stands for
    sets = {name: [p for _, held in parts for p in held.get(name, [])] for name in (*reversed(PURPOSES), UNDIVIDED)}
    known: set[str] = set()
    for name, problems in sets.items():
        if config.eval_dataset is not None and name == foreign:
            places = [place.strip() for place in config.eval_dataset.split(",")]
            apart = _named_apart([(read_dataset(place, task), {}) for place in places])
            problems = [problem for part, _ in apart for problem in part]
            if len(places) > 1:  # what several have counts once
                problems = list({fingerprint(p): p for p in reversed(problems)}.values())[::-1]
        elif count > 1:
            random.Random(HELD_OUT_SEED).shuffle(problems)
        sets[name] = _within(config, [p for p in problems if fingerprint(p) not in known])
        known |= {fingerprint(problem) for problem in problems}
    held_out = sets[config.eval_split]
    validation = held_out if config.eval_split == UNDIVIDED else sets["validation"]
    if not held_out and config.difficulty:
        raise ConfigError(f"--difficulty {config.difficulty}: no held-out problem is in the window; '' keeps all")
    if not held_out or (config.eval_every and not validation):
        option = "--eval-every" if held_out else f"--eval-split {config.eval_split}"
        raise ConfigError(f"{option}: no problem is left for it; give a larger --dataset, or drop the option")
    train: list[Problem] = []
    origin: dict[str, int] = {}
    for index, (problems, _) in enumerate(parts):
        limit = None
        if config.max_samples is not None:
            limit = config.max_samples if count == 1 else math.ceil(config.max_samples * shares[index] / sum(shares))
        kept = _within(config, [problem for problem in problems if fingerprint(problem) not in known])[:limit]
        origin |= dict.fromkeys((problem.id for problem in kept), index)
        train += kept
        if not kept:
            name = config.datasets[index]
            raise ConfigError(f"--dataset {name}: no problem is left to train on; give a larger one, or --eval-dataset")
    return ProblemSets(train, held_out[: config.eval_problems], origin, validation[: config.eval_problems])


Part = tuple[list[Problem], dict[str, list[Problem]]]  # of a data set: its training problems, held-out ones by purpose


def _named_apart(parts: list[Part]) -> list[Part]:
    """The parts, each problem whose id an earlier part has too with the number of its own part before it."""

    def apart(problems: list[Problem], index: int, taken: set[str]) -> list[Problem]:
        return [replace(p, id=f"{index}:{p.id}") if p.id in taken else p for p in problems]

    known: set[str] = set()
    named = []
    for index, (train, held_out) in enumerate(parts):
        named.append((apart(train, index, known), {k: apart(held, index, known) for k, held in held_out.items()}))
        known |= {problem.id for problems in (train, *held_out.values()) for problem in problems}
    return named


def held_out_problems(config: RunConfig) -> list[Problem]:
    """The evaluation split of a run's configuration."""
    return load_problem_sets(config).held_out


def clusters_of(problems: Iterable[Problem]) -> dict[str, str]:
    """The cluster of every problem that names one, by the problem's id."""
    return {problem.id: problem.cluster for problem in problems if problem.cluster}


def training_order(
    problems: list[Problem], config: RunConfig, rows: int, origin: Mapping[str, int] | None = None
) -> list[int]:
    """Indices of the problems of so many rows; every pass over the problems is reshuffled by the run's seed.

    With `config.dataset_weights`, the data set of each row is drawn first, and each data set has passes of its own;
    `origin` maps a problem's id to its data set. More rows continue the same order.
    """
    import torch

    generator = torch.Generator().manual_seed(config.seed)
    if config.weights is None or origin is None:
        return list(islice(_passes(list(range(len(problems))), generator), rows))
    members = [[i for i, p in enumerate(problems) if origin[p.id] == k] for k in range(len(config.weights))]
    weights = torch.tensor([w if found else 0.0 for w, found in zip(config.weights, members, strict=True)])
    streams = [_passes(m, torch.Generator().manual_seed(config.seed + 1 + k)) for k, m in enumerate(members)]
    return [next(streams[int(torch.multinomial(weights, 1, generator=generator))]) for _ in range(rows)]


def _passes(indices: list[int], generator: Any) -> Iterator[int]:
    """The indices over and over, each pass in another order."""
    import torch

    while indices:
        yield from (indices[i] for i in torch.randperm(len(indices), generator=generator).tolist())


def advantage_scale(problem: Problem, scales: Mapping[str, float]) -> float:
    """The factor of a problem's advantages: of its source and difficulty label, else of its source, else 1."""
    for label in problem.difficulty.split():
        if f"{problem.source}/{label}" in scales:
            return scales[f"{problem.source}/{label}"]
    return scales.get(problem.source, 1.0)


def check_scales(scales: Mapping[str, float], problems: Iterable[Problem]) -> None:
    """Raise `ConfigError` for a factor whose source none of the training problems has; say which factor does nothing as
    none of its source's problems has the label."""
    labels: dict[str, set[str]] = {}
    for problem in problems:
        labels.setdefault(problem.source, set()).update(problem.difficulty.split())
    for name in scales:
        of = [source for source in labels if name == source or name.startswith(f"{source}/")]
        if not of:
            raise ConfigError(f"--advantage-scale: no training problem is of {name!r}; there is {_some(labels)}")
        if not any(name == source or name.removeprefix(f"{source}/") in labels[source] for source in of):
            print(f"--advantage-scale: {name!r} does nothing, as {of[0]} has only {_some(labels[of[0]])}", flush=True)


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:12]) or "no label"


def _training_and_held_out(name: str, config: RunConfig, task: Task, seed: int) -> Part:
    """The training problems of a data set, and its held-out ones by purpose."""
    makers = [other for other in TASKS.values() if other.generator and other.generator.name == name]
    if task in makers:
        return _generated(task, config, seed)
    if makers:
        raise ConfigError(f"--dataset {name} is for --task {makers[0].name}, not for {task.name}")
    problems = _read(name, task)  # with those that this machine cannot grade: everywhere the split is the same
    here = {problem.id for problem in _gradable_here(problems, name)}
    shuffled = list(problems)
    random.Random(HELD_OUT_SEED).shuffle(shuffled)
    wanted: tuple[str, ...] = (UNDIVIDED,) if config.eval_split == UNDIVIDED else PURPOSES
    count = max(1, round(len(problems) * HELD_OUT_SHARE))
    if config.eval_dataset is not None:
        wanted = tuple(purpose for purpose in wanted if purpose not in ("test", UNDIVIDED))
        count = round(len(problems) * HELD_OUT_SHARE) if wanted else 0
    held_out, train = shuffled[:count], shuffled[count:]
    if config.eval_dataset is not None:
        kept = {problem.id for problem in train}
        train = [problem for problem in problems if problem.id in kept]  # in the order of the file, then shuffled
    if config.eval_dataset is not None or config.shuffle_seed is not None:
        random.Random(seed).shuffle(train)
    ends = [count * i // len(wanted) for i in range(len(wanted) + 1)] if wanted else []
    parts = [train, *(held_out[ends[i] : ends[i + 1]] for i in range(len(wanted)))]
    train, *apart = ([problem for problem in part if problem.id in here] for part in parts)
    return train, dict(zip(wanted, apart, strict=True))


def training_part(name: str, config: RunConfig, task: Task) -> list[Problem]:
    """The problems of one of the data sets of `config` that are not held out."""
    return _training_and_held_out(name, config, task, config.seed)[0]


def _generated(task: Task, config: RunConfig, seed: int) -> Part:
    assert task.generator is not None
    generate = task.generator.problems
    train = generate("train", config.max_samples or GENERATED_TRAIN_PROBLEMS, seed)
    if config.eval_split == UNDIVIDED:
        return train, {UNDIVIDED: generate("held_out", config.eval_problems, HELD_OUT_SEED)}
    purposes = {config.eval_split} | ({"validation"} if config.eval_every else set())
    return train, {p: generate("held_out", config.eval_problems, HELD_OUT_SEED, p) for p in sorted(purposes)}


def _within(config: RunConfig, problems: list[Problem]) -> list[Problem]:
    if not config.difficulty:
        return problems
    keeps = parse_windows(config.difficulty)
    return [problem for problem in problems if keeps(problem.difficulty)]


def read_dataset(name: str, task: Task) -> list[Problem]:
    """The problems of a prepared JSON-lines file, of `SOURCE:location`, or of a place that holds the task's own data
    set.

    Says on stderr how many records could not be used, and why. Raises `ConfigError` where none can.
    """
    return _gradable_here(_read(name, task), name)


def _read(name: str, task: Task) -> list[Problem]:
    """As `read_dataset`, with those that this machine lacks something for."""
    from data.sources import SOURCES, find_source, is_prepared, load

    prefix, colon, location = name.partition(":")
    path = Path(name)
    if colon and prefix.replace("-", "_") in SOURCES:
        source, place = find_source(prefix), location or None
    elif path.name.endswith(".jsonl") and (not task.source or not path.is_file() or is_prepared(path)):
        return _gradable(read_problems(path), name, task)
    elif task.source:
        source, place = find_source(task.source), name
    else:
        raise ConfigError(
            f"--dataset {name}: give a JSON-lines file made by scripts/prepare_data.py, or SOURCE:location with one "
            f"of {', '.join(SOURCES)}"
        )
    problems: dict[str, Problem] = {}
    reasons: Counter[str] = Counter()
    for _, loaded in load(source, place):
        if isinstance(loaded, Exception):
            reasons[str(loaded)] += 1
        else:
            problems.setdefault(loaded.problem.id, loaded.problem)
    if reasons:
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
        print(f"{name}: {sum(reasons.values())} records are skipped ({why})", file=sys.stderr)
    return _gradable(list(problems.values()), name, task)


def without_missing_needs(problems: list[Problem]) -> tuple[list[Problem], dict[str, str]]:
    """The problems that can be graded on this machine; of the others, by id, what it lacks."""
    lacking = {problem.id: reason for problem in problems if (reason := missing_need(problem))}
    return [problem for problem in problems if problem.id not in lacking], lacking


def _gradable_here(problems: list[Problem], name: str) -> list[Problem]:
    kept, lacking_here = without_missing_needs(problems)
    if lacking_here:
        named = "; ".join(f"{problem_id}: {reason}" for problem_id, reason in lacking_here.items())
        count = len(lacking_here)
        print(f"{name}: {count} problems cannot be graded on this machine and are skipped ({named})", file=sys.stderr)
    if not kept:
        raise ConfigError(f"dataset {name}: this machine lacks something for every problem, so nothing can be graded")
    return kept


def _gradable(problems: list[Problem], name: str, task: Task) -> list[Problem]:
    kept = [problem for problem in problems if task.gradable(problem)]
    if not kept:
        lacking = "has tests" if task.runs_programs else "has an answer"
        raise ConfigError(f"dataset {name}: no problem {lacking}, so nothing can be graded for the task {task.name}")
    return kept
