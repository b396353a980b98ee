"""What the commands share: options made from `RunConfig`, and errors of the user answered with one sentence."""

from __future__ import annotations

import contextlib
import sys
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import click
import repo_root  # noqa: F401

from pipeline.config import TASK_NAMES, RunConfig

HELP = {
    "model": "Folder, GGUF file, hub id, or 'starter'. Default: Qwen2.5-Coder-3B-Instruct on a GPU, else the starter.",
    "hub": "Where a hub id is looked up: huggingface or modelscope.",
    "quant": "Weights of the trained model: nf4 or none. Default: nf4 on a GPU.",
    "u": "Trainable scalars per group.",
    "rank": "Singular pairs kept per module.",
    "projections": "P of the adapter: normal (random) or principal (from the base policy's own completions). "
    "Default: principal; for the starter, and for more scalars than mixing entries, normal.",
    "groups": "Vectors of u scalars; modules share one per group, by depth.",
    "task": f"{', '.join(TASK_NAMES)}.",
    "template": "How problems are asked: a name (direct, reasoning, ...) or a text file with $statement.",
    "system_prompt": "Replaces the template's system prompt; '' leaves it out.",
    "dataset": "JSON-lines file, SOURCE:location, 'starter' or 'generated'; several are separated by commas.",
    "dataset_weights": "How often each data set is drawn from, such as 2,1.  [default: alike for every problem]",
    "eval_dataset": "JSON-lines file of test problems. Default: a third of the tenth of --dataset that is held out.",
    "difficulty": "Keep problems within windows: 800:1200, A:C, easy:medium; several by commas; '' keeps all.",
    "shuffle_seed": "Seeds which problems are held out or kept by --max-samples, and their order.  [default: --seed]",
    "max_samples": "Use at most this many training problems.",
    "max_prompt_length": "Longer prompts are dropped and counted.",
    "vllm": "Generate with vLLM, or with transformers.",
    "num_generations": "Completions per prompt: the group.",
    "prompts_per_step": "Prompts per step.",
    "temperature": "Sampling temperature.",
    "top_k": "Sample from this many likeliest tokens (0: all).",
    "top_p": "Sample from the fewest likeliest tokens that hold this mass (1: all).",
    "dynamic_sampling": "Replace groups whose rewards are all equal by new prompts.",
    "dynamic_limit": "Groups drawn at most with --dynamic-sampling, times --prompts-per-step.  [default: 4]",
    "max_completion_length": "Tokens after which a completion is cut.",
    "refresh": "How the update reaches vLLM: merged into the weights, or lowrank: beside them, unrounded, slower.",
    "rounding": "How merged weights are rounded to bf16: stochastic or nearest.",
    "gpu_memory": "GB of GPU memory for trainer and engine together.",
    "reward": "tiered, pass-rate, binary, perfect-bonus or compile-or-all.",
    "compile_credit": "Reward of 'tiered' for compiling alone.",
    "overlong_cache": "Completions this many tokens below the limit lose up to 1 of reward, linearly (0: none).",
    "mask_truncated": "No gradient from completions cut at the limit.",
    "advantage_scale": "Factors of the advantage by source or source/difficulty, such as codeforces=0.5,taco/EASY=2.",
    "grader_workers": "Grader processes. Default: one per core.",
    "unsafe_grader": "Grade even where programs cannot be sandboxed.",
    "header_store": "MB of memory for precompiled headers of prologues that come again (0: none).",
    "canary": "End a run before it starts whose graders refuse known-right solutions.",
    "steps": "Optimizer steps.",
    "lr": "auto (every step moves the policy by --step-kl), or a learning rate of Adam.",
    "step_kl": "KL of a step of --lr auto, nats a completion.",
    "lr_schedule": "constant, or falling to zero over the run: linear or cosine.",
    "warmup_steps": "The first steps, made shorter: shares 1/(N+1), 2/(N+1), ... of their length.",
    "adam_beta1": "Adam's memory of the gradient, per step.",
    "adam_beta2": "Adam's memory of the squared gradient, per step.",
    "max_grad_norm": "Scale longer gradients to this norm (0: never); with --lr auto it changes only Adam's moments.",
    "num_iterations": "Optimizer steps per batch of rollouts.",
    "epsilon": "Clip range of the importance ratio below 1.",
    "epsilon_high": "Clip range above 1. Default: --epsilon. Of cispo: the largest weight of a token. Default: 5.",
    "loss_type": "grpo, dapo, dr_grpo, bnpo or cispo.",
    "importance_sampling_level": "Importance ratios of tokens, or of a whole sequence (GSPO, with --loss-type grpo).",
    "entropy_bonus": "Weight of the mean entropy of all tokens, in nats, in the loss.",
    "scale_rewards": "Divide advantages by the rewards' standard deviation: group, batch or none. "
    "Default: group, for dr_grpo none.",
    "beta": "Weight of the KL penalty to the base policy.",
    "micro_batch_tokens": "Tokens per forward and backward pass.",
    "seed": "Seeds problems, order, projections and sampling.",
    "eval_every": "Evaluate on validation problems every N steps (0: never) and keep the best checkpoint.",
    "eval_split": "test for a figure to report, tuning while settings are chosen; all: undivided, as earlier runs.",
    "eval_problems": "Held-out problems per evaluation.",
    "eval_temperature": "Temperature of held-out evaluations; 0 is greedy.",
    "stop_kl": "Stop when the KL to the base exceeds this many nats per token (0: never).",
    "stop_entropy": "Stop when the entropy falls below this many nats per token (0: never).",
    "stop_idle": "Stop when no row could be trained for this many steps in a row (0: never).",
    "output_dir": "Folder of the run. Default: a new one under runs/.",
    "report_to": "none, tensorboard, wandb or trackio.",
}


def only(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds one option for each named field of `RunConfig`; an option that is not given is None."""
    hints = typing.get_type_hints(RunConfig)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name in reversed(names):
            kind = hints[name]
            if isinstance(kind, types.UnionType):
                kind = next(k for k in typing.get_args(kind) if k is not types.NoneType)
            default = RunConfig.__dataclass_fields__[name].default
            flag = "--" + name.replace("_", "-")
            flag = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
            shown = "" if default is None or kind is bool else f"  [default: {default}]"
            command = click.option(flag, name, type=kind, default=None, help=HELP[name] + shown)(command)
        return command

    return decorate


run_options = only(*HELP)


def user_errors() -> tuple[type[Exception], ...]:
    """The exceptions that are the user's to mend. Looked up only when one is raised: some live beside torch."""
    from data.problems import DatasetError
    from pipeline.config import ConfigError
    from rewards.errors import GraderError

    found: list[type[Exception]] = [ConfigError, DatasetError, GraderError]
    for module, name in (("adapters.config", "AdapterError"), ("pipeline.rollout.engine", "EngineError")):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


@contextlib.contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Turn an error of the user into one line on stderr and exit code 2."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, user_errors()):
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
