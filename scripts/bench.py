"""Benchmarks, one command each. All print a table, draw a picture and write the same JSON form. Without --model they
measure the bundled starter; `scripts/make_shape.py` makes checkpoints of other sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import repo_root  # noqa: F401
from command import given, one_sentence_errors, options

from pipeline.config import Settings
from pipeline.environment import has_gpu
from pipeline.run_folder import read_json
from rewards.grader.toolchains import compiler_version


@click.group(help=__doc__)
def bench() -> None:
    pass


def module(name: str) -> Any:
    """A module of `pipeline/bench`, imported when options have been read: what it needs takes seconds to import."""
    return import_module(f"pipeline.bench.{name}")


def out_option(name: str) -> Callable[..., Any]:
    """Where the results go: `NAME.json`, and the picture beside it."""
    text = "Where the JSON goes; the picture is written beside it, as PNG."
    return click.option(
        "--out", type=click.Path(dir_okay=False), default=f"bench-{name}.json", show_default=True, help=text
    )


MODEL = click.option("--model", default="starter", show_default=True, help="Folder, GGUF file, hub id, or starter.")


def finish(title: str, out: str, measure: Callable[[], Sequence[Any]], **versions: str) -> None:
    """Measure, print the table, write JSON and picture; errors of the user in one sentence."""
    from pipeline.bench.session import measured

    with one_sentence_errors():
        click.echo(measured(title, Path(out), measure, versions))


def settings(model: str, **told: Any) -> tuple[Any, Any, bool]:
    """The model, the settings of a training run on it, and whether a GPU answers."""
    from pipeline.bench.session import settings_of

    with one_sentence_errors():
        return settings_of(model, **given(told))


def step_settings(model: str, prompts: int | None, generations: int, **told: Any) -> tuple[Any, Any, bool]:
    """`settings` for whole steps: 32 prompts on a GPU, 4 on a CPU, unless told."""
    gpu = has_gpu()
    return settings(
        model,
        vllm=True,
        prompts_per_step=prompts or (32 if gpu else 4),
        num_generations=generations,
        max_prompt_length=384 if gpu else None,
        max_completion_length=512 if gpu else None,
        **told,
    )


@bench.command()
@click.option(
    "--programs", type=click.IntRange(min=8), default=96, show_default=True, help="How many different programs."
)
@click.option("--grader-workers", "workers", type=click.IntRange(min=1), help="Grader processes. Default: all cores.")
@click.option(
    "--workload", "only", multiple=True, type=click.Choice(["contest", "mbxp", "humaneval-x"]), help="Default: all."
)
@click.option("--completions", type=click.Path(path_type=Path), help="Grade these of a model: {problem, completion}.")
@click.option("--dataset", help="The problems of --completions, such as mbxp:FILE.")
@out_option("grader")
def grader(
    programs: int, workers: int | None, only: tuple[str, ...], completions: Path | None, dataset: str | None, out: str
) -> None:
    """The grader pool beside the naive way, beside the compiler alone, and its cost per test."""
    if (completions is None) != (dataset is None):
        raise click.UsageError("--completions and --dataset go together")
    real = (dataset, completions) if completions and dataset else None
    measure = module("grader").measure
    finish("grader", out, lambda: measure(programs, workers, only, real), **{"g++": compiler_version("g++")})


@bench.command()
@MODEL
@options(Settings, ["gpu_memory"])
@click.option(
    "--contender",
    "contenders",
    multiple=True,
    help="Several times: ours, lowrank, trl, generate (the default), nf4, nf4-lowrank, fp8, float16, unshared.",
)
@out_option("generation")
def generation(model: str, gpu_memory: float | None, contenders: tuple[str, ...], out: str) -> None:
    """Tokens per second: vLLM as training runs it, as TRL runs it, and Unsloth's generate, beside the roofline."""
    from pipeline.bench.generation import DEFAULT, measure

    choice, _, _ = settings(model, gpu_memory=gpu_memory)
    chosen = contenders or DEFAULT
    title = f"generation, {Path(choice.name).name}"
    finish(title, out, lambda: measure(choice, contenders=chosen, gpu_memory=gpu_memory))


@bench.command()
@MODEL
@options(Settings, ["quant"])
@out_option("refresh")
def refresh(model: str, quant: str | None, out: str) -> None:
    """Milliseconds until another v is in the engine's weights, beside a copy, addmm and TRL's sync_weights."""
    choice, config, gpu = settings(model, quant=quant, vllm=True, engine_weights="bf16")
    measure = module("refresh").measure
    finish(f"refresh, {Path(choice.name).name}", out, lambda: measure(choice, config, gpu))


@bench.command("steps")
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--at-most", type=float, help="The bar of seconds a step.")
@out_option("steps")
def steps(runs: tuple[Path, ...], at_most: float | None, out: str) -> None:
    """What the steps of runs that were made consisted of, against what they cannot be shorter than."""
    measure = module("steps").measure
    finish("steps", out, lambda: measure(runs, at_most))


@bench.command("train-step")
@MODEL
@options(Settings, ["quant", "gpu_memory", "engine_weights", "kv_dtype", "dtype", "unsafe_grader"])
@click.option("--prompts", type=click.IntRange(min=1), help="Prompts of a step. Default: 32 on a GPU, 4 on a CPU.")
@click.option("--generations", type=click.IntRange(min=2), default=8, show_default=True, help="Completions of each.")
@click.option("--steps", type=click.IntRange(min=1), default=3, show_default=True, help="Steps after the first.")
@click.option("--only-steps", is_flag=True, help="Leave out the training pass against the frozen model's.")
@out_option("train-step")
def train_step(
    model: str, prompts: int | None, generations: int, steps: int, only_steps: bool, out: str, **told: Any
) -> None:
    """The training pass against the frozen model's, and whole steps with real grading."""
    choice, config, gpu = step_settings(model, prompts, generations, **told)
    tokens = 0 if only_steps else 8192 if gpu else 1024
    measure = module("train_step").measure
    finish(f"train-step, {Path(choice.name).name}", out, lambda: measure(choice, config, tokens, steps, gpu))


@bench.command()
@MODEL
@options(Settings, ["quant"])
@out_option("init")
def init(model: str, quant: str | None, out: str) -> None:
    """Seconds from a frozen model to an adapted one, and the residuals of its singular pairs."""
    choice, config, gpu = settings(model, quant=quant)
    measure = module("init").measure
    finish(f"init, {Path(choice.name).name}", out, lambda: measure(choice, config, gpu))


@bench.command()
@MODEL
@options(Settings, ["quant", "dtype", "unsafe_grader"])
@click.option("--steps", type=click.IntRange(min=1), help="Training steps. Default: 20 on a GPU, 2 on a CPU.")
@click.option("--prompts", type=click.IntRange(min=1), default=16, show_default=True, help="Prompts of a step.")
@out_option("mismatch")
def mismatch(model: str, steps: int | None, prompts: int, out: str, **told: Any) -> None:
    """How far engine and trainer are from one policy, for every way to serve the update."""
    choice, config, gpu = settings(model, vllm=True, engine_weights="bf16", prompts_per_step=prompts, **told)
    count = steps or (20 if gpu else 2)
    measure = module("mismatch").measure
    finish(f"mismatch, {Path(choice.name).name}", out, lambda: measure(choice, config, count, gpu))


@bench.command()
@MODEL
@options(Settings, ["quant", "dtype", "gpu_memory"])
@click.option("--prompts", type=click.IntRange(min=1), default=16, show_default=True, help="Completions to look at.")
@click.option("--tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Most tokens of each.")
@out_option("causes")
def causes(model: str, prompts: int, tokens: int, out: str, **told: Any) -> None:
    """Which rounding to bf16 makes how much of the mismatch between engine and trainer."""
    choice, config, _ = settings(model, vllm=True, prompts_per_step=prompts, max_completion_length=tokens, **told)
    measure = module("causes").measure
    finish(f"causes, {Path(choice.name).name}", out, lambda: measure(choice, config))


@bench.command()
@MODEL
@options(Settings, ["quant", "gpu_memory", "grader_workers", "unsafe_grader"])
@click.option("--dataset", default="starter", show_default=True, help="Problems that the step is fitted to.")
@click.option("--eval-dataset", help="Problems that judge it. Default: those of --dataset that are held out.")
@click.option("--completions", type=click.IntRange(min=64), help="To fit it. Default: 4096 on a GPU, 256 on a CPU.")
@click.option("--nats", default="1,3", show_default=True, help="KL of the step, nats a completion; several by commas.")
@click.option("--problems", type=click.IntRange(min=2), default=96, show_default=True, help="Held-out problems.")
@click.option("--samples", type=click.IntRange(min=1), default=8, show_default=True, help="Completions of each.")
@out_option("gain")
def gain(model: str, completions: int | None, nats: str, problems: int, samples: int, out: str, **told: Any) -> None:
    """What one step of the scalars, fitted on graded completions of the base, gains on other problems."""
    try:
        lengths = [float(part) for part in nats.split(",")]
    except ValueError:
        raise click.BadParameter(f"must be numbers separated by commas, not {nats!r}", param_hint="--nats") from None
    if not all(0 < length < 100 for length in lengths):
        raise click.BadParameter(f"must be between 0 and 100, not {nats!r}", param_hint="--nats")
    choice, config, gpu = settings(model, vllm=True, eval_problems=problems, **told)
    count = completions or (4096 if gpu else 256)
    measure = module("gain").measure
    finish(f"gain, {Path(choice.name).name}", out, lambda: measure(choice, config, count, lengths, samples))


@bench.command()
@MODEL
@options(Settings, ["quant", "gpu_memory", "grader_workers", "u"])
@click.option("--dataset", default="starter", show_default=True, help="Problems whose pass@1 is looked at.")
@click.option("--completions", type=click.IntRange(min=64), help="Default: 4096 on a GPU, 512 on a CPU.")
@click.option("--rank", type=click.IntRange(2, 64), default=16, show_default=True, help="Singular directions in all.")
@out_option("signal")
def signal(model: str, completions: int | None, out: str, **told: Any) -> None:
    """How much of the gradient of pass@1 the scalars see, by singular directions and rule for P."""
    choice, config, gpu = settings(model, vllm=True, **told)
    count = completions or (4096 if gpu else 512)
    measure = module("signal").measure
    finish(f"signal, {Path(choice.name).name}", out, lambda: measure(choice, config, count))


@bench.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", help="The base. Default: the first run's.")
@click.option("--eval-dataset", "data_sets", multiple=True, help="Such as mbxp:FILE, once or more. Default: the run's.")
@click.option("--samples", type=click.IntRange(min=1), default=8, show_default=True, help="Of each problem, at T = 1.")
@click.option("--limit", type=click.IntRange(min=1), help="At most this many problems of each set. Default: the run's.")
@click.option("--grader-workers", type=click.IntRange(min=1), help="Grader processes. Default: the run's.")
@options(Settings, ["gpu_memory"])
@out_option("learning")
def learning(
    runs: tuple[Path, ...],
    model: str | None,
    data_sets: tuple[str, ...],
    samples: int,
    limit: int | None,
    grader_workers: int | None,
    gpu_memory: float | None,
    out: str,
) -> None:
    """What RUNS (their folders, or checkpoint-N in them) gained over their base, sampled and greedily."""
    with one_sentence_errors():
        told = {"model": model, "eval_problems": limit, "grader_workers": grader_workers, "gpu_memory": gpu_memory}
        asked = module("learning").check_runs(runs, **told)
    completions = Path(out).with_suffix("")
    measure = module("learning").measure
    finish("learning", out, lambda: measure(asked, runs, data_sets or (None,), samples, completions))
    click.echo(f"completions are in {completions}/")


@bench.command()
@MODEL
@options(Settings, ["quant", "gpu_memory"])
@click.option("--replicas", default="1,2", show_default=True, help="Numbers of replicas, separated by commas.")
@click.option("--prompts", type=click.IntRange(min=1), help="Prompts of one replica. Default: 32 on a GPU, 4 on a CPU.")
@click.option("--generations", type=click.IntRange(min=2), default=8, show_default=True, help="Completions of each.")
@click.option("--steps", type=click.IntRange(min=1), default=3, show_default=True, help="Steps after the first.")
@click.option("--simulate", is_flag=True, help="Only the driver's work, with replicas that are stand-ins.")
@out_option("scale")
def scale(
    model: str,
    replicas: str,
    prompts: int | None,
    generations: int,
    steps: int,
    simulate: bool,
    out: str,
    **told: Any,
) -> None:
    """Whole steps of several replicas: a batch that grows with them, and one that is shared out."""
    try:
        counts = sorted({1, *(int(part) for part in replicas.split(","))})
    except ValueError:
        said = f"must be numbers separated by commas, not {replicas!r}"
        raise click.BadParameter(said, param_hint="--replicas") from None
    if counts[0] < 1:
        raise click.BadParameter("must be at least 1", param_hint="--replicas")
    if simulate:
        from pipeline.bench import scale_simulation

        finish("scale, simulated", out, lambda: scale_simulation.measure(counts))
        scale_simulation.draw(read_json(Path(out))["rows"], Path(out).with_suffix(".png"))
        return
    choice, config, gpu = step_settings(model, prompts, generations, replicas=str(max(counts)), **told)
    measure = module("scale").measure
    finish(f"scale, {Path(choice.name).name}", out, lambda: measure(choice, config, counts, steps, gpu))


if __name__ == "__main__":
    bench()
