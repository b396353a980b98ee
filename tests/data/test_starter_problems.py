"""The generated problems: determinism, splits, wordings, and reference programs that really pass."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from data.purposes import PURPOSES
from data.starter.authors import BY_NAME
from data.starter.family import params_digest
from data.starter.generator import (
    FAMILIES,
    HELD_OUT_FAMILIES,
    RESERVED,
    TRAIN_FAMILIES,
    draw_instance,
    instances,
    problems,
    program,
)
from pipeline.starter.corpus import examples
from pipeline.tasks import TASKS
from rewards.grader.pool import GraderPool
from rewards.problem import problem_from_record

QUICK = ("bill", "rotate", "filter_list", "palindrome", "robot", "queue", "densest_row", "pattern")


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    with GraderPool(workers=2, unsafe=True, quiet=True) as pool:
        yield pool


def test_at_least_forty_families_in_two_disjoint_splits() -> None:
    train, held_out = ({f.name for f in split} for split in (TRAIN_FAMILIES, HELD_OUT_FAMILIES))
    assert len(FAMILIES) >= 40
    assert len({f.name for f in FAMILIES}) == len(FAMILIES)
    assert not train & held_out
    assert train | held_out == {f.name for f in FAMILIES}
    assert len(held_out) >= 12


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_problems_are_deterministic_and_distinct(split) -> None:
    found = problems(split, 300, seed=3)
    assert found == problems(split, 300, seed=3)
    assert found[:20] == problems(split, 20, seed=3)
    assert found != problems(split, 300, seed=4)
    assert len({p.statement for p in found}) == 300
    assert len({p.id for p in found}) == 300
    families = TRAIN_FAMILIES if split == "train" else HELD_OUT_FAMILIES
    assert {p.source for p in found} == {f.name for f in families}


def test_what_is_asked_for_one_purpose_is_asked_for_no_other() -> None:
    """In any wording; and what the defaults were chosen on is for tuning."""
    asked = {p: {params_digest(i.family, i.params) for i in instances("held_out", 160, 5, p)} for p in PURPOSES}
    assert all(not asked[p] & asked[q] for p in PURPOSES for q in PURPOSES if p != q)
    earlier = instances("held_out", 1024, 1_000_003)
    digests = {params_digest(i.family, i.params) for i in earlier}
    assert not digests & (asked["test"] | asked["validation"])
    assert [i.problem.id for i in earlier] == [p.id for p in problems("held_out", 1024, 1_000_003, "tuning")]
    assert {p.cluster for p in problems("held_out", 64, 0, "test")} == {f.name for f in HELD_OUT_FAMILIES}
    with pytest.raises(ValueError, match="unknown purpose"):
        problems("held_out", 1, 0, "training")


def test_unknown_split_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="'train' or 'held_out'"):
        problems("test", 1, seed=0)  # type: ignore[arg-type]


def test_no_problem_handed_out_is_in_the_corpus() -> None:
    """Not even in another wording: what a problem asks decides on which side it is."""
    for instance in instances("train", 100, seed=0) + instances("held_out", 100, seed=0):
        assert params_digest(instance.family, instance.params) % RESERVED == 0
    handed_out = {p.statement for split in ("train", "held_out") for p in problems(split, 1000, seed=0)}
    assert handed_out.isdisjoint(p.statement for p, _ in examples(1500, "test", 0.5))


def test_statements_have_sections_samples_and_hidden_tests() -> None:
    for problem in problems("train", 90, seed=1) + problems("held_out", 32, seed=1):
        assert "## Input" in problem.statement and "## Output" in problem.statement
        assert "$" not in problem.statement and "None" not in problem.statement
        assert len(problem.samples) == 2
        assert len(problem.tests) >= 7
        assert problem_from_record(problem.to_record()) == problem
        assert "## Sample 2" in TASKS["code"].prompt.messages(problem)[1]["content"]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family_has_wordings_and_many_parameters(family) -> None:
    assert len(set(family.stories)) >= 4
    rng = Random(0)
    assert len({params_digest(family, family.draw(rng)) for _ in range(1500)}) >= 90
    reserved = [draw_instance(family, rng, reserved=True) for _ in range(40)]
    assert len({i.problem.statement for i in reserved}) >= 30
    assert len({tuple(t.output for t in i.problem.tests) for i in reserved}) > 10


def test_results_stay_inside_64_bits() -> None:
    rng = Random(0)
    for family in FAMILIES:
        for _ in range(20):
            for test in draw_instance(family, rng, reserved=True).problem.tests:
                for word in test.output.split():
                    assert not word.lstrip("-").isdigit() or abs(int(word)) < 2**62


def test_reference_programs_pass(pool: GraderPool) -> None:
    check_references(pool, [f for f in FAMILIES if f.name in QUICK], count=1)


@pytest.mark.integration
def test_reference_programs_of_all_families_pass(pool: GraderPool) -> None:
    check_references(pool, FAMILIES, count=2)


def check_references(pool: GraderPool, families, count: int) -> None:
    rng = Random(11)
    jobs = []
    for family in families:
        for _ in range(count):
            instance = draw_instance(family, rng, reserved=True)
            jobs.append((instance, program(instance, BY_NAME["steady"], rng)))
    futures = [pool.submit(source, instance.problem) for instance, source in jobs]
    for (instance, source), future in zip(jobs, futures, strict=True):
        verdict = future.result()
        assert verdict.accepted, f"{instance.family.name} {instance.params}: {verdict}\n{source}"
