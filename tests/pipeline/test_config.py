"""Settings: what is refused, what is filled in, and that a run's file gives the run back."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import ConfigError, Settings, load_config, read_settings, resolved


@pytest.mark.parametrize(
    "wrong, named",
    [
        ({"u": 0}, "--u"),
        ({"lr": -1.0}, "--lr"),
        ({"lr": float("nan")}, "--lr"),
        ({"steps": 0}, "--steps"),
        ({"quant": "int8"}, "--quant"),
        ({"loss_type": "ppo"}, "--loss-type"),
        ({"scale_rewards": "std"}, "--scale-rewards"),
        ({"num_generations": 1}, "--num-generations"),
        ({"epsilon": -0.1}, "--epsilon"),
        ({"compile_credit": 1.0}, "--compile-credit"),
        ({"report_to": "mlflow"}, "--report-to"),
        ({"u": "32"}, "u must be of type int"),
        ({"vllm": 1}, "vllm must be of type bool"),
        ({"top_k": 1}, "--top-k 1"),
        ({"top_k": -1}, "--top-k"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.5}, "--top-p"),
        ({"adam_beta1": 1.0}, "--adam-beta1"),
        ({"adam_beta2": -0.1}, "--adam-beta2"),
        ({"max_grad_norm": -1.0}, "--max-grad-norm"),
        ({"entropy_bonus": -0.1}, "--entropy-bonus"),
        ({"importance_sampling_level": "sequence", "loss_type": "dapo"}, "add --loss-type grpo"),
        ({"dynamic_limit": 3.0}, "--dynamic-limit bounds --dynamic-sampling"),
        ({"dynamic_sampling": True, "dynamic_limit": 1.0}, "--dynamic-limit must be greater than 1"),
    ],
)
def test_wrong_settings_are_named_in_one_sentence(wrong: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as error:
        Settings(**wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "told, named",
    [
        ({"ray_address": "auto"}, "--ray-address auto: one replica uses no cluster; add --replicas auto"),
        ({"loss_type": "cispo", "epsilon_high": 0.28}, "--epsilon-high 0.28: of cispo it is the largest weight"),
        ({"loss_type": "cispo", "epsilon": 0.3}, "--epsilon 0.3: cispo bounds no weight from below"),
        ({"lr": "1e-3", "step_kl": 0.1}, "--step-kl 0.1: .* --lr auto"),
        ({"reward": "binary", "compile_credit": 0.1}, "--compile-credit 0.1: --reward binary gives none"),
        ({"engine_weights": "bf16"}, "--engine-weights bf16: .* add --vllm"),
        ({"rounding": "nearest"}, "--rounding nearest: only vLLM's weights are merged; add --vllm"),
        ({"task": "gsm8k", "reward": "binary"}, "--reward binary: --task gsm8k has rewards of its own"),
        ({"task": "q", "compile_credit": 0.1}, "--compile-credit 0.1: --task q has rewards of its own"),
    ],
)
def test_what_would_do_nothing_is_refused_where_it_is_told(told: dict, named: str) -> None:
    settings = Settings(**told)  # as an earlier run may have been made
    settings.check_told(set())
    with pytest.raises(ConfigError, match=named):
        settings.check_told(told)


def test_the_settings_of_a_run_can_be_told_again(tmp_path: Path) -> None:
    for asked in (Settings(dataset="x"), Settings(dataset="x", loss_type="cispo"), Settings(dataset="x", replicas="2"),
                  Settings(dataset="x", lr="0.001", reward="binary")):  # fmt: skip
        resolved(asked, starter=True, gpu=False).save(tmp_path / "config.yaml")
        told = read_settings(tmp_path / "config.yaml")
        Settings(**told).check_told(told)


def test_presets_fill_what_is_open_and_nothing_else() -> None:
    config = resolved(Settings(steps=7, epsilon=0.1), starter=True, gpu=False)
    assert (config.steps, config.quant, config.epsilon_high) == (7, "none", 0.1)
    assert config.batch_size == config.prompts_per_step * config.num_generations
    assert resolved(Settings(dataset="x.jsonl"), starter=False, gpu=True).quant == "nf4"
    on_gpu, on_cpu = (resolved(Settings(), starter=True, gpu=gpu).steps or 0 for gpu in (True, False))
    assert on_gpu > on_cpu > 0


@pytest.mark.parametrize(
    "wrong, gpu, named",
    [
        ({"engine_weights": "nf4"}, True, "add --vllm --quant nf4"),
        ({"engine_weights": "nf4", "vllm": True}, False, "add --vllm --quant nf4"),
        ({"engine_weights": "nf4", "vllm": True, "quant": "none"}, True, "add --vllm --quant nf4"),
        ({"kv_dtype": "fp8", "vllm": True}, False, "--kv-dtype fp8"),
        ({"kv_dtype": "fp8"}, True, "--kv-dtype fp8"),
        ({"dtype": "float16"}, False, "only a GPU computes in it"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(wrong: dict, gpu: bool, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        resolved(Settings(**wrong), starter=True, gpu=gpu)


@pytest.mark.parametrize(
    "wrong, named",
    [
        ({"overlong_cache": 224}, "--max-completion-length, 224"),
        ({"warmup_steps": 7, "steps": 7}, "--warmup-steps 7"),
        ({"dynamic_sampling": True, "dynamic_limit": 1.01}, "--dynamic-limit 1.01: of 16 .* use at least 1.07"),
    ],
)
def test_what_depends_on_the_model_is_checked_once_it_is_known(wrong: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        resolved(Settings(**wrong), starter=True, gpu=False)


def test_only_dynamic_sampling_has_a_limit() -> None:
    limits = [resolved(Settings(dynamic_sampling=x), starter=True, gpu=False).dynamic_limit for x in (True, False)]
    assert limits == [4.0, None]


def test_cispo_caps_its_weights_at_5_where_nothing_else_is_said() -> None:
    """As a clip range, 0.2 would cap every weight at 0.2."""
    caps = [resolved(Settings(loss_type=x), starter=True, gpu=False).epsilon_high for x in ("cispo", "dapo")]
    assert caps == [5.0, 0.2]
    assert resolved(Settings(loss_type="cispo", epsilon_high=3.0), starter=True, gpu=False).epsilon_high == 3.0


def test_an_earlier_run_divides_by_the_deviation_of_its_groups(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("loss_type: dapo\n")  # of a run made before there was the setting
    assert load_config(tmp_path / "config.yaml").scale_rewards == "group"


def test_saved_config_is_the_same_config(tmp_path: Path) -> None:
    config = resolved(Settings(lr="0.001", vllm=True), starter=True, gpu=False)
    config.save(tmp_path / "config.yaml")
    stored = load_config(tmp_path / "config.yaml")
    assert resolved(stored, starter=False, gpu=True) == config  # nothing in it is open any more


@pytest.mark.parametrize(
    "text, reason", [
        ("u: [", "not valid YAML"),
        ("- 1", "one setting a line"),
        ("wings: 2", "unknown setting 'wings'"),
        ("top-k: 5\nu: 1\ntop_k: 6", "'top_k' is given 2 times"),
    ],
)
def test_bad_config_files_are_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_settings(path)
    with pytest.raises(ConfigError, match="no such file"):
        read_settings(tmp_path / "none.yaml")
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_settings(path)


def test_config_file_takes_the_names_of_the_options(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("num-generations: 4\nlr: 1\nstep_kl: 1e-3\ntop-p: 1\n")
    assert Settings(**read_settings(path)) == Settings(num_generations=4, lr="1", step_kl=0.001)
    path.write_text("lr: 0.000123456789\n")
    assert Settings(**read_settings(path)).learning_rate == 0.000123456789
    path.write_text("step_kl: far\n")
    with pytest.raises(ConfigError, match="step_kl must be of type float, not 'far'"):
        Settings(**read_settings(path))
