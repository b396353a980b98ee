"""How good the pretrained starter is: sampled programs for held-out problems, graded, by author and by family.

A check of the recipe only. The project's evaluation with intervals and pass@k is `scripts/eval.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.starter.authors import AUTHORS, author_of
from data.starter.generator import problems
from pipeline.tasks import TASKS
from rewards.extraction import extract_source
from rewards.grader.pool import GraderPool
from rewards.problem import Problem

SAMPLES = 4
BATCH = 512
LONGEST = 320  # tokens of a completion


@torch.no_grad()
def sample(folder: Path, asked: Sequence[Problem], device: torch.device) -> list[str]:
    """One completion for every problem, at temperature 1."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.to(device).eval()
    torch.manual_seed(0)
    texts: list[str] = []
    for start in tqdm(range(0, len(asked), BATCH), desc="sample", unit="batch"):
        prompts = [
            tokenizer.apply_chat_template(TASKS["code"].prompt.messages(p), tokenize=False, add_generation_prompt=True)
            for p in asked[start : start + BATCH]
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(device)
        out = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
        texts += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def report(folder: Path, count: int, device: torch.device) -> str:
    """Pass@1 on `count` held-out problems: in all, by author, by family."""
    asked = [problem for problem in problems("held_out", count, seed=1) for _ in range(SAMPLES)]
    texts = sample(folder, asked, device)
    # our own model's programs: a machine without a safe sandbox is good enough to measure them
    with GraderPool(unsafe=True) as pool:
        futures = [pool.submit(extract_source(text), problem) for text, problem in zip(texts, asked, strict=True)]
        verdicts = [future.result() for future in tqdm(futures, desc="grade", unit="program")]
    by_author: dict[str, list[bool]] = defaultdict(list)
    by_family: dict[str, list[bool]] = defaultdict(list)
    for text, problem, verdict in zip(texts, asked, verdicts, strict=True):
        by_author[author_of(text.removeprefix("```cpp\n"))].append(verdict.accepted)
        by_family[problem.source].append(verdict.accepted)
    everything = [verdict.accepted for verdict in verdicts]
    careful = {author.name for author in AUTHORS if author.careful}
    lines = [f"pass@1 {sum(everything) / len(everything):.3f} of {len(everything)} programs", "", "by author"]
    for name, passed in sorted(by_author.items(), key=lambda item: -len(item[1])):
        kind = "careful" if name in careful else ""
        share = len(passed) / len(everything)
        lines.append(f"  {name:14} share {share:.3f}  pass {sum(passed) / len(passed):.3f}  {kind}")
    lines += ["", "by family"]
    for name, passed in sorted(by_family.items()):
        lines.append(f"  {name:20} {sum(passed) / len(passed):.3f} of {len(passed)}")
    return "\n".join(lines)
