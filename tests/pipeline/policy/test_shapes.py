"""Shape checkpoints: the published parameter counts, a small one written and loaded, folders that are in the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from make_shape import main
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.config import PROJECTIONS
from adapters.tinylora import target_linears
from pipeline.config import ConfigError
from pipeline.policy import shapes
from pipeline.policy.models import STARTER_FOLDER, choose_model
from pipeline.policy.shapes import FIELDS, SHAPES, meta_model, write_shape

SMALL = dict(zip(FIELDS, (64, 128, 2, 4, 2, True, 2304), strict=True))


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "small", SMALL)
    monkeypatch.setitem(SHAPES, "small-untied", SMALL | {"tie_word_embeddings": False})


@pytest.mark.parametrize(
    ("name", "parameters", "modules", "projections"),
    [  # of the model cards; 7 projections a layer; their weights: hidden x (2 hidden + 2 key-value + 3 intermediate)
        ("0.5b", 494_032_768, 168, 24 * 896 * (2 * 896 + 2 * 128 + 3 * 4864)),
        ("1.5b", 1_543_714_304, 196, 28 * 1536 * (2 * 1536 + 2 * 256 + 3 * 8960)),
        ("3b", 3_085_938_688, 252, 2_774_532_096),
        ("7b", 7_615_616_512, 196, 28 * 3584 * (2 * 3584 + 2 * 512 + 3 * 18944)),
        ("14b", 14_770_033_664, 336, 48 * 5120 * (2 * 5120 + 2 * 1024 + 3 * 13824)),
    ],
)
def test_a_shape_has_the_published_parameters(name: str, parameters: int, modules: int, projections: int) -> None:
    model = meta_model(name)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert sum(p.numel() for p in model.parameters()) == parameters
    adapted = target_linears(model, PROJECTIONS)
    assert len(adapted) == modules
    assert sum(linear.weight.numel() for linear in adapted.values()) == projections
    assert {layer.rpartition(".")[2] for layer in adapted if adapted[layer].bias is not None} == {
        "q_proj", "k_proj", "v_proj",
    }  # fmt: skip


def test_a_written_shape_loads_as_transformers_would_initialise_it(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "small"
    made = write_shape("small", folder, seed=3)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(choose_model(str(folder)).location)
    assert made.new and made.size == 2 * made.parameters == 2 * sum(p.numel() for p in model.parameters())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        if parameter.dim() == 2:
            assert parameter.float().std().item() == pytest.approx(0.02, rel=0.08), name
            assert abs(parameter.float().mean().item()) < 0.002, name
        else:
            assert set(parameter.tolist()) == {0.0 if name.endswith(".bias") else 1.0}, name
    distinct = {parameter.flatten()[:32].sum().item() for parameter in model.parameters() if parameter.dim() == 2}
    assert len(distinct) == 15  # no two drawn from the same numbers
    config = model.config
    assert (config.rope_parameters["rope_theta"], config.max_position_embeddings) == (1e6, 32768)
    assert tokenizer.model_max_length == 32768
    for settings in (config, model.generation_config):
        assert (settings.eos_token_id, settings.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert len(tokenizer) < config.vocab_size
    messages = [{"role": "user", "content": "Print the sum of two integers."}]
    starter = AutoTokenizer.from_pretrained(STARTER_FOLDER)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == starter.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits
    assert logits.shape == (1, len(ids), 2304) and logits.isfinite().all() and logits.float().std() > 0.01


def test_a_seed_gives_the_same_weights_in_one_file_or_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(name: str, seed: int, folder: str) -> dict[str, torch.Tensor]:
        write_shape(name, tmp_path / folder, seed)
        return AutoModelForCausalLM.from_pretrained(tmp_path / folder).state_dict()

    whole, other = weights("small-untied", 0, "whole"), weights("small-untied", 1, "other")
    monkeypatch.setattr("pipeline.policy.weights.SHARD_BYTES", 320_000)
    sharded = weights("small-untied", 0, "sharded")
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"):
        assert not torch.equal(whole[name], other[name])
    assert not torch.equal(whole["lm_head.weight"], whole["model.embed_tokens.weight"])
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert len(shards) > 1 and set(index["weight_map"].values()) == {path.name for path in shards}
    assert index["metadata"]["total_size"] == 2 * sum(tensor.numel() for tensor in whole.values())
    assert all(path.stat().st_size < 330_000 for path in shards)
    assert [path.name for path in (tmp_path / "whole").glob("model*")] == ["model.safetensors"]


def test_the_same_shape_is_left_alone_and_anything_else_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is as good as none
    assert write_shape("small", out, seed=0).new
    (out / "notes.txt").write_text("mine")
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert not write_shape("small", out, seed=0).new
    with pytest.raises(ConfigError, match="not a complete small of seed 1; delete it"):
        write_shape("small", out, seed=1)
    with pytest.raises(ConfigError, match="not a complete small-untied of seed 0"):
        write_shape("small-untied", out, seed=0)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with (out / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ConfigError, match="not a complete small of seed 0"):
        write_shape("small", out, seed=0)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    for path in (foreign, foreign / "thesis.txt"):
        with pytest.raises(ConfigError, match="exists and is not"):
            write_shape("small", path, seed=0)
    with pytest.raises(ConfigError, match="cannot be created"):
        write_shape("small", foreign / "thesis.txt" / "out", seed=0)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


def test_an_interruption_or_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def interrupted(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
        drawn.append(name)
        if name.startswith("model.layers.1"):
            assert list(tmp_path.glob(".out.*/model-00001-of-*.safetensors"))  # the first shards are on disk by now
            raise KeyboardInterrupt
        return draw(name, shape, generator)

    draw = shapes.draw
    monkeypatch.setattr("pipeline.policy.weights.SHARD_BYTES", 50_000)
    monkeypatch.setattr(shapes, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shape("small", tmp_path / "out", seed=0)
    assert drawn and not list(tmp_path.iterdir())
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    with pytest.raises(ConfigError, match=r"7b takes 15.2 GB, and only 1.0 are free"):
        write_shape("7b", tmp_path / "out", seed=0)
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_it_wrote_and_which_names_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "0.5b", SMALL)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["0.5b"], catch_exceptions=False)
    parameters = sum(p.numel() for p in meta_model("0.5b").parameters())
    assert done.exit_code == 0, done.output
    assert f"wrote shapes/0.5b: {parameters:,} parameters, {2 * parameters:,} bytes" in done.output
    assert "python scripts/bench.py generation --model shapes/0.5b" in done.output
    assert "already there: shapes/0.5b" in CliRunner().invoke(main, ["0.5b"]).output
    refused = CliRunner().invoke(main, ["0.5b", "--seed", "1"])
    assert refused.exit_code == 2 and len(refused.stderr.splitlines()) == 1
    unknown = CliRunner().invoke(main, ["32b"])
    assert unknown.exit_code == 2
    assert all(f"'{name}'" in unknown.output for name in ("0.5b", "1.5b", "3b", "7b", "14b"))
