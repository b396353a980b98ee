"""The authors: careful ones are right, each careless one fails in its own way, and the first lines tell who wrote."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from random import Random

import pytest

from data.starter.authors import AUTHORS, BY_NAME, author_of, mistake_for, mixture
from data.starter.generator import FAMILIES, draw_instance, program
from data.starter.sketch import Style, kinds, resolve, to_cpp
from pipeline.starter.corpus import examples
from rewards.grader.pool import GraderPool
from rewards.verdict import Status


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    with GraderPool(workers=2, unsafe=True, quiet=True) as pool:
        yield pool


def test_sketch_in_two_styles() -> None:
    sketch = "in n;\nfor i {{0 ~off 1}} n {\n    if (n > i) out n * 2, i;\n}"
    assert kinds(sketch) == {"off"}
    plain = resolve(sketch)
    c = to_cpp(plain, Style("#include <cstdio>", number="int"))
    assert 'scanf("%d", &n);' in c
    assert 'if (n > i) printf("%d %d\\n", n * 2, i);' in c
    assert "for (int i = 0; i < n; i++) {" in c
    streams = to_cpp(resolve(sketch, "off"), Style("#include <iostream>", io="std::cout", allman=True))
    assert "for (int i = 1; i < n; i++)\n    {" in streams
    assert 'if (n > i) std::cout << n * 2 << " " << i << std::endl;' in streams


def test_mixture_is_a_distribution_with_the_share_asked_for() -> None:
    shares = mixture(0.3)
    assert sum(shares.values()) == pytest.approx(1)
    assert sum(share for name, share in shares.items() if BY_NAME[name].careful) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="between 0 and 1"):
        mixture(1.0)


def test_first_lines_tell_the_author() -> None:
    rng = Random(0)
    for family in FAMILIES:
        for author in AUTHORS:
            instance = draw_instance(family, rng, reserved=False)
            assert author_of(program(instance, author, rng)) == author.name


def test_every_family_has_places_for_several_mistakes() -> None:
    for family in FAMILIES:
        assert len(kinds(family.sketch) - {"over"}) >= 3, family.name
        instance = draw_instance(family, Random(1), reserved=False)
        for author in AUTHORS:
            spoiled_by_int = family.wide and "over" in author.mistakes
            assert author.careful or spoiled_by_int or mistake_for(instance, author), f"{author.name} {family.name}"


def test_corpus_is_deterministic_and_follows_the_mixture() -> None:
    found = list(examples(3000, "a", 0.5))
    assert found[:50] == list(examples(50, "a", 0.5))
    counts = Counter(author_of(code) for _, code in found)
    for name, share in mixture(0.5).items():
        assert counts[name] / len(found) == pytest.approx(share, abs=0.04)


@pytest.mark.integration
def test_authors_keep_their_quality_in_all_families(pool: GraderPool) -> None:
    """Careful programs pass; faulty ones fail at least nine times in ten, by compile errors only if meant to. Every
    author on half of the families, and every family by half of the authors."""
    rng = Random(21)
    jobs = []
    for number, author in enumerate(AUTHORS):
        for family in FAMILIES[number % 2 :: 2]:
            instance = draw_instance(family, rng, reserved=True)
            source = program(instance, author, rng, faulty=not author.careful)
            jobs.append((author, instance, source, pool.submit(source, instance.problem)))
    right: dict[str, list[bool]] = defaultdict(list)
    for author, instance, source, future in jobs:
        verdict = future.result()
        right[author.name].append(verdict.accepted)
        label = f"{author.name} {instance.family.name} {instance.params} {mistake_for(instance, author)}\n{source}"
        assert verdict.accepted or not author.careful, label
        assert (verdict.status is Status.COMPILE_ERROR) == (author.mistakes == ("syntax",)), label
    for name, results in right.items():
        if not BY_NAME[name].careful:
            assert sum(results) <= max(1, len(results) // 10), f"{name} is right {sum(results)} times of {len(results)}"
