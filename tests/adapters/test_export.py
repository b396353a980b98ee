"""Every export, loaded by the stock library it is for, gives the log-probabilities of our own model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adapters import TinyLoRAConfig, adapted_layers, inject
from adapters.export import export_lora, export_peft_tinylora, peft_weight_tying

IDS = torch.arange(40).reshape(2, 20) * 5 % 250 + 5
ROOT = Path(__file__).resolve().parents[2]


def load(folder: Path, dtype: torch.dtype = torch.float32):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def trained(folder: Path, dtype: torch.dtype = torch.float32, **config):
    model = load(folder, dtype)
    bank = inject(model, TinyLoRAConfig(**config))
    torch.nn.init.normal_(bank.v, std=0.1, generator=torch.Generator().manual_seed(0))
    return model


@torch.no_grad()
def log_probs(model) -> torch.Tensor:
    """(rows, length − 1) log-probability of every next token."""
    scores = torch.log_softmax(model(IDS).logits[:, :-1].float(), dim=-1)
    return scores.gather(-1, IDS[:, 1:].unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("rank, groups", [(2, 1), (3, 4)])
def test_lora_in_stock_peft(tiny_model_folder: Path, tmp_path: Path, rank: int, groups: int) -> None:
    from peft import PeftModel

    model = trained(tiny_model_folder, u=8, rank=rank, groups=groups)
    export_lora(model, tmp_path, str(tiny_model_folder))
    base = load(tiny_model_folder)
    before = log_probs(base)
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", rank, rank)
    torch.testing.assert_close(log_probs(loaded), log_probs(model), rtol=0, atol=1e-5)
    assert (log_probs(loaded) - before).abs().max() > 0.05
    torch.testing.assert_close(log_probs(loaded.merge_and_unload()), log_probs(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 3, 14])  # of 14 modules; PEFT would cut 3 groups differently
def test_tinylora_in_stock_peft(tiny_model_folder: Path, tmp_path: Path, groups: int) -> None:
    from peft import PeftModel

    model = trained(tiny_model_folder, u=8, groups=groups)
    export_peft_tinylora(model, tmp_path, str(tiny_model_folder))
    loaded = PeftModel.from_pretrained(load(tiny_model_folder), tmp_path).eval()
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "TINYLORA" and config["u"] == 8
    vectors = sum(p.numel() for name, p in loaded.named_parameters() if "tinylora_v" in name)
    assert vectors == 8 * (14 if groups == 3 else groups)
    torch.testing.assert_close(log_probs(loaded), log_probs(model), rtol=0, atol=1e-5)


def test_imported_projections_export_alike(tiny_model_folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    model = trained(tiny_model_folder, projections="cuda-diag-scaled", seed=212)
    for name, export in (("lora", export_lora), ("tinylora", export_peft_tinylora)):
        export(model, tmp_path / name, str(tiny_model_folder))
        loaded = PeftModel.from_pretrained(load(tiny_model_folder), tmp_path / name).eval()
        torch.testing.assert_close(log_probs(loaded), log_probs(model), rtol=0, atol=1e-5)


def test_groups_that_peft_cuts_alike_are_tied() -> None:
    assert peft_weight_tying(TinyLoRAConfig(), 252) == pytest.approx(1 - 1 / 252)
    assert peft_weight_tying(TinyLoRAConfig(groups=252), 252) == 0
    assert peft_weight_tying(TinyLoRAConfig(groups=12), 252) is not None
    assert peft_weight_tying(TinyLoRAConfig(groups=16), 252) is None


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, None)])
def test_merged_folder_in_stock_transformers(
    tiny_model_folder: Path, tmp_path: Path, dtype: torch.dtype, tolerance: float | None
) -> None:
    """In bf16 the folder must hold the very weights an engine serves; its log-probabilities carry bf16's noise."""
    from transformers import AutoTokenizer

    from adapters.merge import merge_weight, salt_of
    from pipeline.tools.export import save_merged

    model = trained(tiny_model_folder, dtype, u=8)
    save_merged(model, AutoTokenizer.from_pretrained(tiny_model_folder), str(tiny_model_folder), "stochastic", tmp_path)
    loaded = load(tmp_path, dtype)
    assert not any("tinylora" in name or "base_layer" in name for name in loaded.state_dict())
    for name, layer in adapted_layers(model).items():
        served = merge_weight(layer.base_layer.weight, layer.delta_weight(), "stochastic", salt_of(name))
        assert torch.equal(loaded.get_submodule(name).weight, served)
    if tolerance is not None:
        torch.testing.assert_close(log_probs(loaded), log_probs(model), rtol=0, atol=tolerance)
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == "<|im_end|>"


@pytest.mark.integration
def test_a_four_bit_base_is_merged_dequantised(tiny_model_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    from pipeline.tools.export import save_merged

    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        tiny_model_folder, dtype=torch.float32, quantization_config=quantisation, device_map="cpu"
    ).train()  # in eval mode bitsandbytes computes in bf16 on a CPU that can
    bank = inject(model, TinyLoRAConfig(u=8))
    torch.nn.init.normal_(bank.v, std=0.1, generator=torch.Generator().manual_seed(0))
    save_merged(model, AutoTokenizer.from_pretrained(tiny_model_folder), str(tiny_model_folder), "nearest", tmp_path)
    loaded = load(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    torch.testing.assert_close(log_probs(loaded), log_probs(model), rtol=0, atol=1e-3)


VLLM = """
import json, os, sys
from pipeline.environment import prepare_environment
prepare_environment(sys.argv[1])

def main():
    import torch
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    base, adapter, merged, ids = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
    prompts = [{"prompt_token_ids": row} for row in ids]
    result = {}
    for name, model in (("lora", base), ("merged", merged)):
        options = {"enable_lora": True, "max_lora_rank": 8} if name == "lora" else {}
        options |= {} if torch.cuda.is_available() else {"enforce_eager": True}
        llm = LLM(model=model, dtype="float32", max_model_len=64, gpu_memory_utilization=0.3, **options)
        request = {"lora_request": LoRARequest("tinylora", 1, adapter)} if name == "lora" else {}
        outputs = llm.generate(prompts, params, use_tqdm=False, **request)
        result[name] = [
            [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], row[1:])]
            for output, row in zip(outputs, ids)
        ]
        llm.llm_engine.engine_core.shutdown()
    print("RESULT" + json.dumps(result))

if __name__ == "__main__":
    main()
"""


@pytest.mark.integration
def test_lora_and_merged_folder_in_stock_vllm(tiny_model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from transformers import AutoTokenizer

    from pipeline.tools.export import save_merged

    model = trained(tiny_model_folder, u=8)
    export_lora(model, tmp_path / "lora", str(tiny_model_folder))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    save_merged(model, tokenizer, str(tiny_model_folder), "nearest", tmp_path / "merged")
    script = tmp_path / "serve.py"
    script.write_text(VLLM)
    arguments = [str(tiny_model_folder), str(tmp_path / "lora"), str(tmp_path / "merged"), json.dumps(IDS.tolist())]
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")] or [done.stderr[-2000:]]
    served = json.loads(line.removeprefix("RESULT"))
    for name in ("lora", "merged"):
        torch.testing.assert_close(torch.tensor(served[name]), log_probs(model), rtol=0, atol=1e-3)
