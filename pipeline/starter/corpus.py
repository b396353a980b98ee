"""The corpus that the starter model is pretrained on: prompts as the policy sees them, programs of mixed quality.

Without torch, so that the processes that make it start at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from random import Random

from tqdm import tqdm

from data.starter.authors import BY_NAME, mixture, program
from data.starter.generator import FAMILIES, draw_instance
from pipeline.tasks import TASKS
from rewards.problem import Problem

END_OF_TURN, PADDING, START_OF_TURN = "<|im_end|>", "<|endoftext|>", "<|im_start|>"
CHUNK = 2500  # examples made by one job; fixed, so that the corpus does not depend on the number of workers


def examples(count: int, seed: str, careful_share: float) -> Iterator[tuple[Problem, str]]:
    """Pairs of a problem (of any family, never a reserved one) and a program for it by a random author."""
    rng = Random(f"corpus/{seed}")
    shares = mixture(careful_share)
    names, weights = list(shares), list(shares.values())
    for _ in range(count):
        instance = draw_instance(rng.choice(FAMILIES), rng, reserved=False)
        author = BY_NAME[rng.choices(names, weights)[0]]
        yield instance.problem, program(instance, author, rng)


def prompt_text(problem: Problem) -> str:
    """The prompt as the chat template renders it, up to the start of the answer, without the cost of jinja."""
    messages = TASKS["code"].prompt.messages(problem)
    turns = [f"{START_OF_TURN}{m['role']}\n{m['content']}{END_OF_TURN}\n" for m in messages]
    return "".join(turns) + f"{START_OF_TURN}assistant\n"


def completion_text(code: str) -> str:
    """The answer as the model is to write it, with the end of its turn."""
    return f"```cpp\n{code}```{END_OF_TURN}"


def texts(count: int, seed: int, careful_share: float) -> list[tuple[str, str]]:
    """(prompt, completion) of the whole corpus, made by all cores; the same arguments give the same corpus."""
    jobs = [(min(CHUNK, count - start), f"{seed}/{start}", careful_share) for start in range(0, count, CHUNK)]
    found: list[tuple[str, str]] = []
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for chunk in tqdm(pool.map(_chunk, jobs), total=len(jobs), desc="corpus", unit="chunk"):
            found += chunk
    return found


def _chunk(job: tuple[int, str, float]) -> list[tuple[str, str]]:
    return [(prompt_text(problem), completion_text(code)) for problem, code in examples(*job)]
