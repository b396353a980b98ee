"""The committed starter model: its tokenizer, chat template, size and shape. Skipped until it has been made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.starter.generator import problems
from pipeline.starter.corpus import completion_text, examples, prompt_text
from pipeline.tasks import TASKS

MODEL = Path(__file__).resolve().parents[3] / "data/starter/model"
pytestmark = pytest.mark.skipif(
    not (MODEL / "config.json").is_file(), reason="the starter model has not been made: python scripts/make_starter.py"
)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


def test_model_is_small_and_fits_nf4() -> None:
    assert sum(f.stat().st_size for f in MODEL.iterdir()) <= 15_000_000
    recipe, config = (json.loads((MODEL / name).read_text()) for name in ("recipe.json", "config.json"))
    assert 3_000_000 <= recipe["parameters"] <= 6_000_000
    assert config["model_type"] == "qwen2" and config["tie_word_embeddings"]
    head = config["hidden_size"] // config["num_attention_heads"]
    for size in (config["hidden_size"], config["intermediate_size"], config["num_key_value_heads"] * head):
        assert size % 64 == 0


def test_tokenizer_round_trip(tokenizer) -> None:
    for problem, code in examples(40, "round-trip", 0.5):
        for text in (problem.statement, code, "naïve 1234 → ünïcode\r\n\t x"):
            assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_chat_template_is_the_form_the_model_was_trained_on(tokenizer) -> None:
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    for problem in problems("held_out", 16, seed=5):
        messages = TASKS["code"].prompt.messages(problem)
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert prompt == prompt_text(problem)
        answer = {"role": "assistant", "content": "```cpp\nint main() {}\n```"}
        whole = tokenizer.apply_chat_template([*messages, answer], tokenize=False)
        assert whole == prompt + completion_text("int main() {}\n") + "\n"
        assert len(tokenizer.encode(prompt, add_special_tokens=False)) <= 320
