"""GGUF files: what is read of them, what is refused before anything loads, and the folder that is made of them."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.config import ConfigError, Settings, resolved
from pipeline.policy.gguf import convert
from pipeline.policy.models import ModelChoice, architecture, choose_model, made_ready, transformers_config
from tests.tiny_gguf import SPECIALS, save_tiny_gguf, tiny_model
from tests.tiny_model import save_tiny_model

CONVERSATION = [{"role": "user", "content": "Say 12345 the\n\n  end!"}]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("TINYLORA_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_model("llama")


@pytest.fixture
def file(tmp_path: Path, llama: Any) -> Path:
    return save_tiny_gguf(tmp_path / "model.gguf", llama)


def loaded(path: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = made_ready(choose_model(str(path))).location
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(5, 45).unsqueeze(0)).logits


def refusal(path: Path | str) -> str:
    with pytest.raises(ConfigError) as caught:
        choose_model(str(path))
    assert "torch" not in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_a_converted_model_is_the_model(kind: str, tied: bool, tmp_path: Path) -> None:
    model = tiny_model(kind, tied=tied)
    made, tokenizer = loaded(save_tiny_gguf(tmp_path / "model.gguf", model))
    assert type(made) is type(model) and made.config.tie_word_embeddings is tied
    torch.testing.assert_close(logits(made), logits(model), rtol=1e-5, atol=1e-5)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert made.generation_config.eos_token_id == [2, 0]
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_embeddings_held_twice_are_tied_and_the_finer_copy_is_kept(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    made, _ = loaded(save_tiny_gguf(tmp_path / "model.gguf", model, twice=True, quantised=True))
    assert made.lm_head.weight is made.model.embed_tokens.weight
    assert torch.equal(made.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(made.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)


def test_llama_3_factors_of_positions_become_its_settings(tmp_path: Path) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    model = tiny_model("llama", rope_parameters=rope, max_position_embeddings=16384)
    plain = 10000.0 ** (-torch.arange(0, 32, 2) / 32)
    factors = (plain / ROPE_INIT_FUNCTIONS["llama3"](model.config, "cpu")[0]).numpy()
    assert factors.max() == pytest.approx(8)
    path = save_tiny_gguf(tmp_path / "model.gguf", model, tensors={"rope_freqs.weight": factors})
    found = transformers_config(choose_model(str(path))).rope_parameters
    assert {key: found[key] for key in rope} == pytest.approx(rope)
    path = save_tiny_gguf(tmp_path / "other.gguf", model, tensors={"rope_freqs.weight": factors**0.5})
    assert "not Llama 3's" in refusal(path)
    for wrong in (factors[:8], factors.reshape(4, 4)):
        path = save_tiny_gguf(tmp_path / "shape.gguf", model, tensors={"rope_freqs.weight": wrong})
        assert f"rope_freqs.weight has shape {wrong.shape} instead of (16,)" in refusal(path)


def test_what_is_not_a_whole_gguf_file_is_refused_in_a_sentence(tmp_path: Path, file: Path) -> None:
    assert "no such file" in refusal(tmp_path / "missing.gguf")
    whole = file.read_bytes()
    for name, content, why in [
        ("text.gguf", b"hello, I am no model", "not a GGUF file"),
        ("empty.gguf", b"", "not a GGUF file"),
        ("weights.bin", whole[1:], "not a GGUF file"),
        ("header.gguf", whole[:900], "damaged or truncated"),
        ("tail.gguf", whole[:-500], f"truncated: {len(whole) - 500:,} of"),
        ("old.gguf", whole[:4] + b"\x01\0\0\0" + whole[8:], "GGUF version 1"),
    ]:
        (tmp_path / name).write_bytes(content)
        assert why in refusal(tmp_path / name) and name in refusal(tmp_path / name)


def test_a_folder_with_one_file_is_that_file_and_with_two_is_refused(tmp_path: Path, file: Path, llama: Any) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.GGUF").symlink_to(file)
    choice = choose_model(str(folder))
    assert choice.is_gguf and choice.name == str(folder) and choice.location == str(folder / "a.GGUF")
    shutil.copy(file, folder / "b.gguf")
    assert "holds 2 GGUF files (a.GGUF, b.gguf); name one of them" in refusal(folder)
    save_tiny_model(folder)
    assert not choose_model(str(folder)).is_gguf  # weights for transformers come first


@pytest.mark.parametrize(
    ("kind", "metadata", "tensors", "why"),
    [
        ("gemma2", {"gemma2.final_logit_softcapping": 30.0}, {}, "'gemma2' caps its logits"),
        ("llama", {"llama.attn_logit_softcapping": 50.0}, {}, "'llama' caps its logits"),
        ("command-r", {"command-r.logit_scale": 0.06}, {}, "'command-r' scales its logits"),
        ("phi2", {}, {"output.bias": [0.0] * 320}, "the output head of 'phi2' has a bias"),
        ("qwen2", {}, {"output.bias": [0.0] * 320}, "the output head of 'qwen2' has a bias"),
        ("llama", {}, {"blk.0.attn_q.bias": [0.0] * 128}, "a bias that Llama does not have (blk.0.attn_q.bias)"),
        ("mamba", {}, {}, "its architecture is 'mamba'; TinyLoRA trains Qwen2, Qwen3, Llama"),
        ("llama", {"llama.expert_count": 8}, {}, "a mixture of 8 experts"),
        ("llama", {"llama.rope.scaling.type": "yarn"}, {}, "positions are scaled (yarn)"),
        ("llama", {"llama.embedding_scale": 12.0}, {}, "llama.embedding_scale"),
        ("llama", {"llama.rope.dimension_count": 16}, {}, "a part of each head"),
        ("llama", {"llama.rope.scale_linear": 2.0}, {}, "positions are scaled (llama.rope.scale_linear)"),
        ("llama", {"llama.rope.scaling.factor": 4.0}, {}, "positions are scaled (llama.rope.scaling.factor)"),
        ("llama", {"llama.rope.scaling.attn_factor": 2.0}, {}, "llama.rope.scaling.attn_factor = 2.0, which Llama"),
        ("llama", {"llama.attention.sliding_window": 128}, {}, "attends to a window only"),
        ("llama", {"llama.attention.causal": False}, {}, "llama.attention.causal = False, which Llama"),
        ("llama", {"llama.attention.clamp_kqv": 8.0}, {}, "llama.attention.clamp_kqv = 8.0, which Llama"),
        ("qwen2", {"qwen2.attention.max_alibi_bias": 8.0}, {}, "qwen2.attention.max_alibi_bias = 8.0, which Qwen2"),
        ("llama", {"split.count": 3}, {}, "one of 3 parts"),
        ("llama", {}, {"blk.0.extra.weight": [1.0]}, "a tensor that Llama does not have"),
    ],
)
def test_what_the_head_cannot_serve_is_refused_by_name(
    kind: str, metadata: dict, tensors: dict, why: str, tmp_path: Path
) -> None:
    model = tiny_model(kind if kind in ("qwen2", "llama") else "llama")
    model.config.model_type = kind  # of the header; the weights are a Llama's
    assert why in refusal(save_tiny_gguf(tmp_path / "model.gguf", model, metadata=metadata, tensors=tensors))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "metadata",
    [
        {"llama.rope.scaling.factor": 0.0},
        {"llama.rope.scaling.factor": 1.0},
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0},
        {"llama.rope.scaling.attn_factor": 1.0, "llama.attention.causal": True},
        {"llama.attention.clamp_kqv": 0.0, "llama.attention.max_alibi_bias": 0.0},
    ],
)
def test_settings_without_an_effect_are_no_reason_to_refuse(metadata: dict, file: Path, llama: Any) -> None:
    assert choose_model(str(save_tiny_gguf(file, llama, metadata=metadata))).is_gguf


@pytest.mark.parametrize("shape", [(320, 32), (300, 64), (320,)])
def test_a_head_of_another_shape_than_the_embedding_is_refused(shape: tuple, file: Path, llama: Any) -> None:
    path = save_tiny_gguf(file, llama, tensors={"output.weight": torch.zeros(shape)})
    assert f"output.weight has shape {shape} instead of (320, 64)" in refusal(path)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("general.alignment", "wide", "damaged or truncated"),
        ("general.alignment", 0, "damaged or truncated"),
        ("general.alignment", -32, "damaged or truncated"),
        ("split.count", "many", "damaged or truncated"),
        ("llama.block_count", 10**8, "tensors for 100000000 layers"),
        ("llama.block_count", "two", "its header has llama.block_count = 'two'"),
        ("llama.attention.head_count_kv", [2, 1], "its layers differ in llama.attention.head_count_kv"),
        ("llama.attention.head_count_kv", 0, "llama.attention.head_count_kv = 0"),
        ("llama.attention.key_length", 24, "blk.0.attn_q.weight has shape (128, 64) instead of (96, 64)"),
        ("llama.context_length", "long", "llama.context_length = 'long'"),
        ("llama.rope.freq_base", "high", "llama.rope.freq_base = 'high'"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "layer_norm_rms_epsilon = nan"),
    ],
)
def test_a_header_with_values_that_cannot_be_is_refused(key: str, value: Any, why: str, file: Path, llama: Any) -> None:
    assert why in refusal(save_tiny_gguf(file, llama, metadata={key: value}))


def test_bytes_changed_in_the_header_are_refused_or_read(file: Path) -> None:
    """Whatever they change, the answer is a model or a sentence, and it does not take long."""
    whole = file.read_bytes()
    drawn = random.Random(0)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(drawn.choice([1, 1, 4])):
            place = drawn.randrange(4, whole.index(b"blk.1"))
            content[place] = drawn.choice([0, 1, 2, 128, 255, content[place] ^ 1])
        file.write_bytes(content)
        try:
            choose_model(str(file))
        except ConfigError:
            refused += 1
    assert 100 < refused < 300


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "gemma2", "final_logit_softcapping": 30.0}, "'gemma2' caps its logits"),
        ({"model_type": "cohere", "logit_scale": 0.06}, "'cohere' scales its logits"),
        ({"model_type": "gpt2"}, "its architecture is 'gpt2'"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "'qwen2' has layers with sliding_attention"),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
            "'qwen3' has layers with sliding_attention",
        ),
    ],
)
def test_the_same_holds_for_a_folder(config: dict, why: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert why in refusal(tmp_path)


@pytest.mark.parametrize("layers", [{"layer_types": ["full_attention"] * 4}, {"max_window_layers": 4}], ids=str)
def test_a_window_that_no_layer_has_is_none(layers: dict, tmp_path: Path) -> None:
    config = {"model_type": "qwen2", "use_sliding_window": True, "num_hidden_layers": 4, **layers}
    (tmp_path / "config.json").write_text(json.dumps(config))
    choose_model(str(tmp_path))


def test_the_template_overrules_the_named_end_and_padding(tmp_path: Path, llama: Any) -> None:
    def named_wrongly(fields: dict[str, Any]) -> None:
        fields["eos_token_id"], fields["pad_token_id"] = 1, 2

    made, tokenizer = loaded(save_tiny_gguf(tmp_path / "model.gguf", llama, edit=named_wrongly))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert made.generation_config.eos_token_id == [2, 0] and made.config.pad_token_id == 0


@pytest.mark.parametrize("shown", ["{{ m['content'] | upper }}", "{{ m['content'] if m['role'] == 'user' }}"])
def test_a_template_that_changes_or_drops_answers_names_no_other_end(shown: str, tmp_path: Path, llama: Any) -> None:
    template = "{% for m in messages %}<|im_start|>" + shown + "<|im_end|>{% endfor %}"
    path = save_tiny_gguf(tmp_path / "m.gguf", llama, edit=lambda fields: fields.update(chat_template=template))
    assert loaded(path)[1].eos_token == "<|im_end|>"


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = math.nan
    choice = choose_model(str(save_tiny_gguf(tmp_path / "m.gguf", model)))
    with pytest.raises(ConfigError, match="blk.1.ffn_up.weight holds what is no number"):
        made_ready(choice)


@pytest.mark.parametrize(("named", "told"), [("<|im_end|>", False), ("<|im_start|>", True)])
def test_only_an_end_that_the_file_names_wrongly_is_told(
    named: str, told: bool, tmp_path: Path, llama: Any, capsys: pytest.CaptureFixture
) -> None:
    """A tokenizer.json alone, as it is often put beside a file, names no end."""
    _, own = loaded(save_tiny_gguf(tmp_path / "own.gguf", llama))
    own.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    capsys.readouterr()
    end = SPECIALS.index(named)
    path = save_tiny_gguf(tmp_path / "model.gguf", llama, edit=lambda fields: fields.update(eos_token_id=end))
    assert loaded(path)[1].eos_token == "<|im_end|>"
    sentence = f"{path} names {named} as its end; its chat template ends answers with <|im_end|>, which is used"
    printed = capsys.readouterr().err
    assert (sentence in printed) is told and ("as its end" in printed) is told


@pytest.mark.parametrize("value", ["x", -1, [2], 2.0])
@pytest.mark.parametrize("key", ["eos", "eot", "padding"])
def test_an_id_that_is_none_is_refused(key: str, value: Any, file: Path, llama: Any) -> None:
    def without(fields: dict[str, Any]) -> None:
        del fields["eos_token_id"], fields["pad_token_id"]

    name = f"tokenizer.ggml.{key}_token_id"
    choice = choose_model(str(save_tiny_gguf(file, llama, metadata={name: value}, edit=without)))
    with pytest.raises(ConfigError) as caught:
        made_ready(choice)
    assert str(caught.value).endswith(f"model.gguf: its header has {name} = {value!r}; convert the model again")


def one_more(kind: int) -> Any:
    """Than the embedding has rows; after the holes, so that there are fewer tokens than rows."""

    def edit(fields: dict[str, Any]) -> None:
        fields["token_list"], fields["token_types"] = [*fields["token_list"], "<|x|>"], [*fields["token_types"], kind]

    return edit


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda fields: fields.pop("chat_template"), "has no chat template"),
        (lambda fields: fields.update(chat_template="{{ raise_exception('no') }}"), "its chat template fails"),
        (lambda fields: fields.update(tokenizer_pre="klingon"), "'klingon', is not supported"),
        (lambda fields: fields.update(tokenizer_model="t5"), "its vocabulary (t5) cannot be read"),
        (lambda fields: fields.update(tokenizer_model="llama"), "its vocabulary cannot be read"),  # without scores
        (lambda fields: fields.update(token_merges=["no such"]), "its vocabulary cannot be read"),
        (lambda fields: fields.pop("token_merges"), "has no merges"),
        (one_more(3), "its vocabulary has a token of id 320, and the embedding 320 rows; put"),
        (one_more(1), "its vocabulary has a token of id 320, and the embedding 320 rows; put"),
    ],
)
def test_a_tokenizer_that_will_not_do_is_refused(edit: Any, why: str, tmp_path: Path, llama: Any, cache: Path) -> None:
    choice = choose_model(str(save_tiny_gguf(tmp_path / "model.gguf", llama, edit=edit)))
    with pytest.raises(ConfigError, match="model.gguf: ") as caught:
        made_ready(choice)
    assert why in str(caught.value)
    assert not list(cache.glob("gguf-*")) and not list(cache.glob("*.partial"))


def test_the_tokenizer_beside_the_file_is_used_if_it_is_the_models(tmp_path: Path, llama: Any) -> None:
    def without_template(fields: dict[str, Any]) -> None:
        del fields["chat_template"]
        fields["tokenizer_pre"] = "klingon"

    path = save_tiny_gguf(tmp_path / "model.gguf", llama)
    _, own = loaded(path)
    own.chat_template = own.chat_template.replace("assistant", "helper")
    bare = tmp_path / "bare"
    own.save_pretrained(bare)
    _, beside = loaded(save_tiny_gguf(bare / "model.gguf", llama, edit=without_template))
    assert beside("the 12345")["input_ids"] == own("the 12345")["input_ids"]
    assert "helper" in beside.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    other = json.loads((bare / "tokenizer.json").read_text())
    more = dict(other, model=other["model"] | {"vocab": other["model"]["vocab"] | {"<|x|>": 320}})
    (bare / "tokenizer.json").write_text(json.dumps(more))
    with pytest.raises(ConfigError, match="the tokenizer next to it has a token of id 320, .*; replace or remove it"):
        made_ready(choose_model(str(bare)))
    other["model"]["vocab"] |= {"!": 40, "I": 3}
    (bare / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(ConfigError, match="another model's"):
        made_ready(choose_model(str(bare)))
    (bare / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="the tokenizer next to it cannot be read .*; replace or remove it"):
        made_ready(choose_model(str(bare)))


def test_a_conversion_is_made_once_and_anew_for_other_contents(
    file: Path, llama: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    write = convert._write
    monkeypatch.setattr(convert, "_write", lambda *arguments: made.append(1) or write(*arguments))  # type: ignore
    first = made_ready(choose_model(str(file))).location
    copy = file.with_name("copy.gguf")
    shutil.copy(file, copy)
    assert made_ready(choose_model(str(copy))).location == first and len(made) == 1
    stat = file.stat()
    content = bytearray(file.read_bytes())
    content[-4] ^= 1  # one bit of a weight, size and times as before
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert made_ready(choose_model(str(file))).location != first and len(made) == 2


def test_an_interrupted_conversion_leaves_nothing_and_two_at_once_make_one(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.policy.gguf.convert.write_weights", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made_ready(choose_model(str(file)))
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    code = "import sys; from pipeline.policy.models import *; print(made_ready(choose_model(sys.argv[1])).location)"
    command = [sys.executable, "-c", code, str(file)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert outputs[0][0] == outputs[1][0] != ""
    assert sum("converting model.gguf" in printed for _, printed in outputs) == 1
    assert len(list(cache.glob("gguf-*"))) == 1


def test_what_a_killed_conversion_left_is_removed_by_the_next_one(file: Path, llama: Any, cache: Path) -> None:
    """Of any file; a conversion that still runs keeps its folder."""
    code = (
        "import os, signal, sys; from pipeline.policy.gguf import convert; from pipeline.policy.models import *\n"
        "def stop(*_): print('writing', flush=True); signal.pause()\n"
        "convert.write_weights = stop; made_ready(choose_model(sys.argv[1]))"
    )
    other = save_tiny_gguf(file.with_name("other.gguf"), llama, metadata={"general.name": "another"})
    with subprocess.Popen([sys.executable, "-c", code, str(other)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "writing\n"
            made_ready(choose_model(str(file)))
            assert len(list(cache.glob(".*.partial"))) == 1
        finally:
            process.kill()
    assert len(list(cache.glob(".*.partial"))) == 1
    third = save_tiny_gguf(file.with_name("third.gguf"), llama, metadata={"general.name": "a third"})
    made_ready(choose_model(str(third)))
    assert not list(cache.glob(".*.partial")) and len(list(cache.glob("gguf-*"))) == 2


def test_the_files_have_the_rights_of_ordinary_files(file: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = Path(made_ready(choose_model(str(file))).location)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        path.name: 0o640 for path in folder.iterdir()
    }


def test_a_cache_without_room_or_rights_is_named(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match="set TINYLORA_CACHE to a folder on a larger disk"):
        made_ready(choose_model(str(file)))
    monkeypatch.setenv("TINYLORA_CACHE", str(file / "below"))
    with pytest.raises(ConfigError, match="set TINYLORA_CACHE to a writable folder"):
        made_ready(choose_model(str(file)))


def test_plans_and_tables_need_no_conversion(tmp_path: Path, cache: Path) -> None:
    """The memory plan and the parameters that `--dry-run` prints, of heads that are wider than the model."""
    from pipeline.policy.loading import parameter_table
    from pipeline.policy.memory import Sizes

    model = tiny_model("qwen3")
    choice = choose_model(str(save_tiny_gguf(tmp_path / "model.gguf", model, twice=True)))
    table = dict(parameter_table(choice, resolved(Settings(model=choice.name, dataset="x"), starter=False, gpu=False)))
    assert table["frozen     base model"].startswith(f"{model.num_parameters():,} parameters")
    sizes = Sizes.of(transformers_config(choice).to_dict())
    assert sizes.projections == sum(p.numel() for name, p in model.named_parameters() if "_proj" in name)
    assert not cache.exists()
    folder = ModelChoice("made", made_ready(choice).location, "a test")
    assert architecture(folder) == architecture(choice) != {}  # by which eval.py knows a checkpoint's base
