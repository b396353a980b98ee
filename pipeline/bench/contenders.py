"""What runs inside a contender's process of the generation benchmark:

    python -m pipeline.bench.contenders TASK.json RESULT.json

Each contender warms every case up with a few tokens, then times whole generations on prompts it has not seen, so the
prefix cache helps only within a group. Completions may end early, so the tokens really produced are counted.

On a CPU, TRL's engine runs with the settings of `pipeline/environment.py` and with vLLM's weights left unpacked, as
ours does: without the latter its `sync_weights` fails there. It serves the data type that the checkpoint declares,
bfloat16 for the starter, where ours serves float32: on a CPU the two rates are not those of equal work.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.bench.generation import VARIANTS, Case, Task
from pipeline.bench.timing import device_seconds, once
from pipeline.config import RunConfig, Settings, resolved
from pipeline.environment import has_gpu, prepare_environment
from pipeline.policy.loading import load_policy
from pipeline.policy.models import compute_dtype, eos_token_ids, load_model
from pipeline.policy.shapes import shape_name
from pipeline.rollout import Sampling
from storage.files import write_json

Prompts = list[list[int]]
Generate = Callable[[Prompts, Case], list[int]]  # one prompt for every group → tokens of every completion

WARM_UP_TOKENS = 16
REFRESHES, SYNCS = 10, 3
TRL_SHARE = 0.45  # of the card for TRL's engine; its trainer has the rest
SMALL = 0.003  # rms of the vector that is served: the policy is not the base, and hardly differs from it


def make_prompts(case: Case, vocabulary: Sequence[int], seed: int | str) -> Prompts:
    """`case.prompts` prompts of random token ids, the same for the same case and seed."""
    rng = random.Random(f"{case.name}:{seed}")
    return [rng.choices(vocabulary, k=case.prompt_tokens) for _ in range(case.prompts)]


def ordinary_tokens(tokenizer: Any) -> list[int]:
    """Token ids that stand for text: neither special nor added."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return [token for token in range(tokenizer.vocab_size) if token not in special]


def time_cases(task: Task, tokenizer: Any, generate: Generate, before: Callable[[], object] = lambda: None) -> Any:
    """Seconds, tokens and tokens/s of every case: the run of the median rate. `before` each run is not timed."""
    vocabulary = ordinary_tokens(tokenizer)
    timings = {}
    for case in task.cases:
        short = replace(case, new_tokens=min(WARM_UP_TOKENS, case.new_tokens))
        generate(make_prompts(short, vocabulary, "warm-up"), short)
        runs = []
        for repeat in range(task.repeats):
            prompts = make_prompts(case, vocabulary, repeat)
            before()
            start = time.perf_counter()
            lengths = generate(prompts, case)
            seconds = time.perf_counter() - start
            if len(lengths) != case.rows or not all(0 < length <= case.new_tokens for length in lengths):
                raise RuntimeError(f"{task.contender} did not give {case.name}; the measurement is void")
            runs.append({"rate": sum(lengths) / seconds, "seconds": seconds, "tokens": sum(lengths)})
        timings[case.name] = sorted(runs, key=lambda run: run["rate"])[len(runs) // 2]
    return timings


def repeated(prompts: Prompts, samples: int) -> Prompts:
    return [prompt for prompt in prompts for _ in range(samples)]


def run_config(task: Task) -> RunConfig:
    """The settings of a training run whose step is as large as the largest case."""
    settings = Settings(
        model=task.choice.name,
        vllm=task.contender != "generate",
        prompts_per_step=task.largest.prompts,
        num_generations=max(2, task.largest.samples),  # a configuration needs two to compare
        max_prompt_length=task.largest.prompt_tokens,
        max_completion_length=task.largest.new_tokens,
        gpu_memory=task.gpu_memory,
        **VARIANTS.get(task.contender, {}),
    )
    return resolved(settings, starter=task.choice.is_starter, gpu=has_gpu())


def serving(task: Task) -> tuple[Any, Generate, Callable[[], float]]:
    """A loaded policy that serves a small update; how its engine generates, and how it refreshes, in seconds."""
    import torch

    policy = load_policy(task.choice, run_config(task))
    v = SMALL * torch.randn(policy.model.tinylora.v.shape, generator=torch.Generator().manual_seed(0))

    def by_completion(prompts: Prompts, case: Case) -> list[int]:
        rows = repeated(prompts, case.samples)
        completions = policy.engine.generate(rows, Sampling(case.new_tokens), lambda row, completion: None)
        return [len(completion.token_ids) for completion in completions]

    def refresh() -> float:
        return policy.engine.refresh(v).seconds

    refresh()
    return policy, by_completion, refresh


def ours(task: Task) -> dict[str, Any]:
    """vLLM as training runs it, then with a request per group; and what a refresh and TRL's sync cost on it."""
    import torch

    policy, by_completion, refresh = serving(task)
    llm, tokenizer = policy.engine.llm, policy.tokenizer
    ends = eos_token_ids(policy.model, tokenizer)

    def by_group(prompts: Prompts, case: Case) -> list[int]:
        return generate_groups(llm, prompts, case, ends)

    rates = {
        "ours": time_cases(task, tokenizer, by_completion, before=refresh),  # a refresh also empties the prefix cache
        "groups": time_cases(replace(task, cases=task.cases[:1]), tokenizer, by_group, before=refresh),
    }
    refresh_seconds = statistics.median(refresh() for _ in range(REFRESHES))
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1.0)  # what follows is no part of a run and its budget
    plain = load_plain(task.choice.location)
    result = {
        "rates": rates,
        "shape": shape_name(plain.config.to_dict()),
        **decoding_bytes(plain),
        "refresh_seconds": refresh_seconds,
        "bandwidth": copy_bandwidth(),
    }
    if policy.engine.holds_merged:
        result["trl_sync_seconds"] = time_sync(bare_generation(plain, llm))  # last: the engine serves the base after it
    policy.close()
    return result


def variant(task: Task) -> dict[str, Any]:
    """vLLM as training runs it with one of `VARIANTS`."""
    policy, by_completion, refresh = serving(task)
    rates = {task.contender: time_cases(task, policy.tokenizer, by_completion, before=refresh)}
    result = {"rates": rates, "refresh_seconds": statistics.median(refresh() for _ in range(REFRESHES))}
    policy.close()
    return result


def unshared(task: Task) -> dict[str, Any]:
    """vLLM as training runs it, but with FlashAttention in every step, which reads a prompt for each completion."""
    import pipeline.rollout.vllm.attention as attention

    attention.kernels_serve = lambda layer: False
    return variant(task)


def generate_groups(llm: Any, prompts: Prompts, case: Case, ends: list[int]) -> list[int]:
    """One request of `case.samples` samples for every prompt, with log-probabilities read out as our engine does."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        n=case.samples,
        temperature=1.0,
        max_tokens=case.new_tokens,
        logprobs=0,
        detokenize=False,
        stop_token_ids=ends,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    samples = [sample for output in outputs for sample in output.outputs]
    log_probs = [
        [entry[token].logprob for entry, token in zip(sample.logprobs, sample.token_ids, strict=True)]
        for sample in samples
    ]
    return [len(values) for values in log_probs]


def trl(task: Task) -> dict[str, Any]:
    """vLLM as TRL's trainers run it in their own process."""
    from accelerate import Accelerator
    from transformers import AutoTokenizer
    from trl.generation.vllm_generation import VLLMGeneration

    if not has_gpu():
        import pipeline.rollout.vllm.worker  # noqa: F401  # keeps vLLM's weights in place

    tokenizer = AutoTokenizer.from_pretrained(task.choice.location)
    generation = VLLMGeneration(
        load_plain(task.choice.location),
        Accelerator(),
        tokenizer,
        mode="colocate",
        gpu_memory_utilization=trl_share(task.gpu_memory),
        max_model_length=task.largest.prompt_tokens + task.largest.new_tokens,
        max_num_seqs=task.largest.rows,
        temperature=1.0,
        max_completion_length=task.largest.new_tokens,
        logprobs=0,
    )

    def generate(prompts: Prompts, case: Case) -> list[int]:
        generation.max_completion_length = case.new_tokens
        _, completions, log_probs, _ = generation.generate(repeated(prompts, case.samples), None, case.samples)
        assert log_probs is not None
        return [len(ids) for ids in completions]

    return {"rates": {"trl": time_cases(task, tokenizer, generate)}, "sync_seconds": time_sync(generation)}


def trl_share(budget: float | None) -> float:
    """The share of the card for TRL's engine: all of a `budget` in GB, which leaves it more than ours has."""
    if budget is None or not has_gpu():
        return TRL_SHARE
    import torch

    return min(TRL_SHARE, budget * 1e9 / torch.cuda.get_device_properties(0).total_memory)


def generate(task: Task) -> dict[str, Any]:
    """Unsloth's `generate` on the trained model, `task.chunk` rows at once."""
    import torch

    model, tokenizer = load_model(task.choice, run_config(task))
    from unsloth import FastLanguageModel

    FastLanguageModel.for_inference(model)
    device = model.tinylora.v.device
    ends = eos_token_ids(model, tokenizer)

    def sample(prompts: Prompts, case: Case) -> list[int]:
        rows = torch.tensor(repeated(prompts, case.samples), device=device)
        lengths: list[int] = []
        for chunk in rows.split(task.chunk):
            with torch.inference_mode():
                ids = model.generate(
                    input_ids=chunk,
                    attention_mask=torch.ones_like(chunk),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=case.new_tokens,
                    eos_token_id=ends,
                    pad_token_id=tokenizer.pad_token_id,
                    use_cache=True,
                )
            lengths += completion_lengths(ids[:, case.prompt_tokens :], ends).tolist()
        return lengths

    return {"rates": {"generate": time_cases(task, tokenizer, sample)}}


def completion_lengths(ids: Any, ends: list[int]) -> Any:
    """Tokens of every row of `ids` (rows, T) up to its first end-of-sequence token, which counts; T without one."""
    import torch

    ended = torch.isin(ids, torch.tensor(ends, device=ids.device))
    return torch.where(ended.any(dim=1), ended.int().argmax(dim=1) + 1, ids.shape[1])


def load_plain(location: str) -> Any:
    """The model by transformers alone, in the data type that is served, where the engine is."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(location, dtype=getattr(torch, compute_dtype()), device_map=device)


def decoding_bytes(model: Any) -> dict[str, int]:
    """Bytes that a decoding step must read: of all linear weights (projections and head), and of a token in the
    cache."""
    import torch

    config, size = model.config, model.dtype.itemsize
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "weight_bytes": size * weights,
        "kv_bytes_per_token": size * 2 * config.num_hidden_layers * config.num_key_value_heads * head,
    }


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of copying a buffer that no cache holds (1 GiB on a GPU, 256 MiB on a
    CPU)."""
    import torch

    gpu = torch.cuda.is_available()
    source = torch.ones((1 << 30) if gpu else (1 << 28), dtype=torch.uint8, device="cuda" if gpu else "cpu")
    target = source.clone()
    return 2 * source.numel() / device_seconds(lambda: target.copy_(source))


def bare_generation(model: Any, llm: Any) -> Any:
    """TRL's `VLLMGeneration` around an engine that runs already: as much of it as its `sync_weights` uses."""
    from accelerate import Accelerator
    from trl.distributed import DistributedBackend
    from trl.generation.vllm_generation import VLLMGeneration

    generation = VLLMGeneration.__new__(VLLMGeneration)
    generation.mode = "colocate"
    generation.enable_sleep_mode = False
    generation.model = model
    generation.llm = llm
    generation.accelerator = Accelerator()
    generation._dist = DistributedBackend(generation.accelerator)
    return generation


def time_sync(generation: Any) -> float:
    """Median seconds of TRL's `sync_weights`, with the copies finished."""
    return statistics.median(once(generation.sync_weights) for _ in range(SYNCS))


def main(asked: str, answered: str) -> None:
    task = Task.read(asked)
    prepare_environment(task.choice.location)
    contenders = {"ours": ours, "trl": trl, "generate": generate}
    contenders |= dict.fromkeys(VARIANTS, variant) | {"unshared": unshared}
    write_json(Path(answered), contenders[task.contender](task))


if __name__ == "__main__":
    main(*sys.argv[1:])
