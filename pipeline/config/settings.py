"""What can be given to a training run: every setting is declared here, once."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import yaml
from pydantic import field_validator
from pydantic.dataclasses import dataclass

from adapters.config import Rule
from data.difficulty import parse_windows
from storage.errors import ConfigError
from storage.files import write_text
from storage.settings import STRICT, Declared, setting

TASK_NAMES = tuple(  # read, not imported: the options need no more
    path.stem
    for path in sorted((Path(__file__).parents[1] / "tasks").glob("*.py"))
    if "\nTASK = " in path.read_text(encoding="utf-8")
)
if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[TASK_NAMES]
Hub = Literal["huggingface", "modelscope"]
Quant = Literal["nf4", "none"]
LossType = Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo"]
LOSS_TYPES = get_args(LossType)
EPSILON = 0.2
STEP_KL = 0.04
REWARD = "tiered"
COMPILE_CREDIT = 0.5
CREDITING = ("tiered", "compile-or-all")  # rewards that give it
SEEDS = 2**32  # numpy takes those below


@dataclass(frozen=True, config=STRICT)
class Settings(Declared):
    """The settings of a training run as they are given. Lengths are in tokens. What is None depends on the model, the
    machine or other settings: `resolved` makes a `RunConfig` of them."""

    # the policy
    model: str | None = setting(
        None,
        "Folder, GGUF file, hub id, or 'starter'. Default: Qwen2.5-Coder-3B-Instruct on a GPU, else the starter.",
    )
    hub: Hub = setting("huggingface", "Where a hub id is looked up.")
    quant: Quant | None = setting(None, "Weights of the trained model. Default: nf4 on a GPU.")
    dtype: Literal["auto", "bfloat16", "float16"] = setting(
        "auto", "What a GPU computes in: bfloat16, the default, or float16, more exact and narrower."
    )
    u: int = setting(32, "Trainable scalars per group.", gt=0)
    rank: int | None = setting(None, "Singular pairs kept per module. Default: 8; for the starter 2.", gt=0)
    groups: int = setting(1, "Vectors of u scalars; modules share one per group, by depth.", gt=0)
    projections: Rule | None = setting(
        None,
        "P of the adapter: normal (random) or principal (from the base policy's own completions); cuda-* are those of "
        "imported checkpoints. Default: principal; for the starter, and for more scalars than mixing entries, normal.",
    )
    # the task and its problems
    task: TaskName = setting("code", "What is asked, and how answers are judged.")
    template: str | None = setting(
        None, "How problems are asked: a name (direct, reasoning, ...) or a text file with $statement."
    )
    system_prompt: str | None = setting(None, "Replaces the template's system prompt; '' leaves it out.")
    dataset: str | None = setting(
        None, "JSON-lines file, SOURCE:location, 'starter' or 'generated'; several are separated by commas."
    )
    dataset_weights: str | None = setting(
        None, "How often each data set is drawn from, such as 2,1. Default: alike for every problem."
    )
    eval_dataset: str | None = setting(
        None, "JSON-lines file of test problems. Default: a third of the tenth of --dataset that is held out."
    )
    difficulty: str | None = setting(
        None, "Keep problems within windows: 800:1200, A:C, easy:medium; several by commas; '' keeps all."
    )
    max_samples: int | None = setting(None, "Use at most this many training problems.", gt=0)
    shuffle_seed: int | None = setting(
        None, "Seeds which problems are held out or kept by --max-samples, and their order. Default: --seed."
    )
    max_prompt_length: int | None = setting(None, "Longer prompts are dropped and counted.", gt=0)
    # rollouts
    vllm: bool = setting(False, "Generate with vLLM, or with transformers.")
    num_generations: int | None = setting(
        None, "Completions per prompt: the group.", ge=2, why=" to compare completions"
    )
    prompts_per_step: int | None = setting(None, "Prompts per step.", gt=0)
    temperature: float = setting(1.0, "Sampling temperature.", gt=0)
    top_k: int = setting(0, "Sample from this many likeliest tokens (0: all).", ge=0)
    top_p: float = setting(
        1.0,
        "Sample from the fewest likeliest tokens that hold this mass (1: all).",
        gt=0,
        le=1,
        why=", which is all tokens",
    )
    dynamic_sampling: bool = setting(False, "Replace groups whose rewards are all equal by new prompts.")
    dynamic_limit: float | None = setting(
        None,
        "Groups drawn at most with --dynamic-sampling, times --prompts-per-step. Default: 4.",
        gt=1,
        why=", the batch itself",
    )
    max_completion_length: int | None = setting(None, "Tokens after which a completion is cut.", gt=0)
    refresh: Literal["merge", "lowrank"] = setting(
        "merge", "How the update reaches vLLM: merged into the weights, or lowrank: beside them, unrounded, slower."
    )
    rounding: Literal["stochastic", "nearest"] | None = setting(
        None, "How merged weights are rounded to --dtype. Default: stochastic."
    )
    engine_weights: Literal["auto", "nf4", "bf16"] = setting(
        "auto",
        "Weights that vLLM computes with: bf16, ones of its own in --dtype, or nf4: the trainer's packed ones, "
        "slower with more room. Default: what gives more tokens/s in the memory at hand.",
    )
    kv_dtype: Literal["auto", "fp8"] = setting(
        "auto", "Keys and values of vLLM: as activations, or fp8: half as large, not the trainer's."
    )
    gpu_memory: float | None = setting(None, "GB of GPU memory for trainer and engine together.", gt=0)
    # rewards
    reward: Literal["tiered", "pass-rate", "binary", "perfect-bonus", "compile-or-all"] = setting(
        REWARD, "How a verdict on a program becomes a reward."
    )
    compile_credit: float = setting(
        COMPILE_CREDIT,
        "Reward of 'tiered' and 'compile-or-all' for compiling alone.",
        ge=0,
        lt=1,
        why=", the reward of a solution",
    )
    overlong_cache: int = setting(
        0, "Completions this many tokens below the limit lose up to 1 of reward, linearly (0: none).", ge=0
    )
    mask_truncated: bool = setting(False, "No gradient from completions cut at the limit.")
    advantage_scale: str | None = setting(
        None, "Factors of the advantage by source or source/difficulty, such as codeforces=0.5,taco/EASY=2."
    )
    grader_workers: int | None = setting(
        None, "Grader processes. Default: one per core, with a GPU two fewer.", gt=0
    )
    unsafe_grader: bool = setting(False, "Grade even where programs cannot be sandboxed.")
    header_store: int = setting(
        1024, "MB of memory for precompiled headers of prologues that come again (0: none).", ge=0
    )
    canary: bool = setting(True, "End a run before it starts whose graders refuse known-right solutions.")
    # GRPO
    steps: int | None = setting(None, "Optimizer steps.", gt=0)
    lr: str = setting("auto", "auto (every step moves the policy by --step-kl), or a learning rate of Adam.")
    step_kl: float = setting(STEP_KL, "KL of a step of --lr auto that is all signal, nats a completion.", gt=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant", "Constant, or falling to zero over the run."
    )
    warmup_steps: int = setting(0, "The first steps, made shorter: shares 1/(N+1), 2/(N+1), ... of their length.", ge=0)
    adam_beta1: float = setting(0.9, "Adam's memory of the gradient, per step.", ge=0, lt=1)
    adam_beta2: float = setting(0.999, "Adam's memory of the squared gradient, per step.", ge=0, lt=1)
    max_grad_norm: float = setting(
        1.0, "Scale longer gradients to this norm (0: never); with --lr auto it changes only Adam's moments.", ge=0
    )
    num_iterations: int = setting(1, "Optimizer steps per batch of rollouts.", gt=0)
    staleness: int = setting(
        0, "1: draw each batch one step before it is trained and grade it meanwhile; 0: train what was just drawn.",
        ge=0, le=1,
    )  # fmt: skip
    epsilon: float = setting(EPSILON, "Clip range of the importance ratio below 1.", ge=0)
    epsilon_high: float | None = setting(
        None, "Clip range above 1. Default: --epsilon. Of cispo: the largest weight of a token. Default: 5.", ge=0
    )
    loss_type: LossType = setting("grpo", "The policy loss: how importance ratios are clipped and tokens averaged.")
    importance_sampling_level: Literal["token", "sequence"] = setting(
        "token", "Importance ratios of tokens, or of a whole sequence (GSPO, with --loss-type grpo)."
    )
    entropy_bonus: float = setting(0.0, "Weight of the mean entropy of all tokens, in nats, in the loss.", ge=0)
    scale_rewards: Literal["group", "batch", "none"] = setting(
        "none", "Whose standard deviation of rewards divides the advantages."
    )
    beta: float = setting(0.0, "Weight of the KL penalty to the base policy.", ge=0)
    micro_batch_tokens: int = setting(16384, "Tokens per forward and backward pass.", gt=0)
    # the run
    seed: int = setting(0, "Seeds problems, order, projections and sampling.", ge=0, lt=SEEDS)
    eval_every: int = setting(
        0, "Evaluate on validation problems every N steps (0: never) and keep the best checkpoint.", ge=0
    )
    eval_problems: int | None = setting(None, "Held-out problems per evaluation.", gt=0)
    eval_split: Literal["test", "tuning", "all"] = setting(  # see data/purposes.py
        "test", "test for a figure to report, tuning while settings are chosen; all: undivided, as earlier runs."
    )
    eval_temperature: float = setting(1.0, "Temperature of held-out evaluations; 0 is greedy.", ge=0)
    stop_kl: float = setting(1.0, "Stop when the KL to the base exceeds this many nats per token (0: never).", ge=0)
    stop_entropy: float = setting(0.002, "Stop when the entropy falls below this many nats per token (0: never).", ge=0)
    stop_idle: int = setting(20, "Stop when no row had an advantage for this many steps in a row (0: never).", ge=0)
    output_dir: str | None = setting(None, "Folder of the run. Default: a new one under runs/.")
    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = setting(
        "none", "A tracker that gets the metrics as well."
    )
    # where it runs
    replicas: str = setting("1", "Copies of the policy that share the work, one a GPU: a number, or auto (all GPUs).")
    ray_address: str | None = setting(
        None, "Ray cluster to use: auto, or host:port. Default: several replicas start Ray on this machine."
    )
    grader_nodes: bool = setting(False, "Nodes of the cluster without a replica grade, too.")

    @field_validator("lr", "replicas", mode="before")
    @classmethod
    def _number_as_text(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return repr(value) if number else value

    def __post_init__(self) -> None:
        """Raise `ConfigError` where what the settings say together cannot work."""
        if self.top_k == 1:
            raise ConfigError("--top-k 1 makes all completions of a group alike: use 2 or more, or 0 for all tokens")
        if self.importance_sampling_level == "sequence" and self.loss_type != "grpo":
            raise ConfigError(
                f"--importance-sampling-level sequence weighs every completion alike, --loss-type {self.loss_type} by "
                f"its length: add --loss-type grpo"
            )
        if self.dynamic_limit is not None and not self.dynamic_sampling:
            raise ConfigError("--dynamic-limit bounds --dynamic-sampling: add it, or leave the limit out")
        if self.staleness and self.dynamic_sampling:
            raise ConfigError(
                "--dynamic-sampling waits for the verdicts of what it draws, so nothing is gained by drawing ahead: "
                "leave out --staleness 1"
            )
        if self.staleness and self.num_iterations > 1:
            raise ConfigError(
                f"--num-iterations {self.num_iterations} with --staleness 1 would train batches up to "
                f"{2 * self.num_iterations - 1} steps after they were drawn: leave one out"
            )
        if self.learning_rate is not None and not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ConfigError(f"--lr must be auto or a number greater than 0, not {self.lr}")
        scales, weights = parse_scales(self.advantage_scale), self.weights
        if any(not (value >= 0 and math.isfinite(value)) for value in scales.values()):
            raise ConfigError(f"--advantage-scale must hold numbers from 0 on, not {self.advantage_scale!r}")
        if weights is not None and len(weights) != len(self.datasets):
            raise ConfigError(f"--dataset-weights has {len(weights)} numbers for {len(self.datasets)} data sets")
        if weights is not None and not all(weight > 0 and math.isfinite(weight) for weight in weights):
            raise ConfigError(f"--dataset-weights must be greater than 0, not {self.dataset_weights!r}")
        if self.difficulty:
            parse_windows(self.difficulty)
        if self.replicas != "auto" and not (self.replicas.isdecimal() and int(self.replicas) > 0):
            raise ConfigError(f"--replicas must be auto or a number greater than 0, not {self.replicas!r}")
        if self.grader_nodes and self.ray_address is None:
            raise ConfigError("--grader-nodes: graders are lent by nodes of a cluster; name it with --ray-address")

    def check_told(self, told: Container[str]) -> None:
        """Raise `ConfigError` if `told`, the names of what the user has set, has something that would do nothing. The
        settings of earlier runs may: their checkpoints are still read, and who resumes one may leave its cluster."""
        if "ray_address" in told and self.ray_address is not None and self.replicas == "1":
            raise ConfigError(
                f"--ray-address {self.ray_address}: one replica uses no cluster; add --replicas auto, or a number"
            )
        if "step_kl" in told and self.step_kl != STEP_KL and self.learning_rate is not None:
            raise ConfigError(
                f"--step-kl {self.step_kl:g}: only --lr auto keeps to it, not --lr {self.lr}; leave one out"
            )
        for name, usual in (("reward", REWARD), ("compile_credit", COMPILE_CREDIT)):
            if name in told and (value := getattr(self, name)) != usual and self.task != "code":
                raise ConfigError(
                    f"--{name.replace('_', '-')} {value}: --task {self.task} has rewards of its own; leave it out"
                )
        if "rounding" in told and self.rounding == "nearest" and not self.vllm:
            raise ConfigError("--rounding nearest: only vLLM's weights are merged; add --vllm, or leave it out")
        if "compile_credit" in told and self.compile_credit != COMPILE_CREDIT and self.reward not in CREDITING:
            raise ConfigError(
                f"--compile-credit {self.compile_credit:g}: --reward {self.reward} gives none; leave it out, or use "
                f"--reward {' or '.join(CREDITING)}"
            )
        if "engine_weights" in told and self.engine_weights == "bf16" and not self.vllm:
            raise ConfigError("--engine-weights bf16: these are weights of vLLM; add --vllm, or leave it out")
        if self.loss_type != "cispo":
            return
        if "epsilon_high" in told and self.epsilon_high is not None and self.epsilon_high < 1:
            raise ConfigError(
                f"--epsilon-high {self.epsilon_high}: of cispo it is the largest weight of a token, and a token of the "
                f"policy's own has 1; use at least 1, or leave it out"
            )
        if "epsilon" in told and self.epsilon != EPSILON:
            raise ConfigError(f"--epsilon {self.epsilon}: cispo bounds no weight from below; leave it out")

    @property
    def datasets(self) -> list[str]:
        """The data sets that `dataset` names."""
        return [part.strip() for part in (self.dataset or "").split(",") if part.strip()]

    @property
    def learning_rate(self) -> float | None:
        """`lr` as a number, None for auto."""
        if self.lr == "auto":
            return None
        try:
            return float(self.lr)
        except ValueError:
            raise ConfigError(f"--lr must be auto or a number greater than 0, not {self.lr!r}") from None

    @property
    def weights(self) -> list[float] | None:
        """`dataset_weights` as numbers."""
        if self.dataset_weights is None:
            return None
        try:
            return [float(part) for part in self.dataset_weights.split(",")]
        except ValueError:
            raise ConfigError(
                f"--dataset-weights must be numbers separated by commas, such as 2,1, not {self.dataset_weights!r}"
            ) from None

    def save(self, path: Path) -> None:
        """Write them as YAML, one a line, in the order in which they are declared."""
        write_text(path, yaml.safe_dump(asdict(self), sort_keys=False))


def parse_scales(text: str | None) -> dict[str, float]:
    """'codeforces=0.5,codeforces/B=1.1' → factors by source, or by source and difficulty. Raises `ConfigError`."""
    scales = {}
    for part in (text or "").split(","):
        name, equals, value = part.strip().rpartition("=")
        try:
            if part.strip():
                scales[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if part.strip() and not (equals and name.strip()):
            raise ConfigError(f"--advantage-scale: {part.strip()!r} is not of the form SOURCE=NUMBER")
    return scales
