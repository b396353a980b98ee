"""Both engines serve the same policy: real vLLM (on the CPU, its CPU build) against the transformers model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters import TinyLoRAConfig, adapted_layers, inject
from pipeline.policy.models import STARTER_FOLDER
from pipeline.rollout import Completion, EngineError, Sampling
from pipeline.rollout.sampling_support import Truncation
from tests.forked import Forks

pytestmark = pytest.mark.integration

PROMPT_LENGTHS = (7, 33, 150, 300)  # the long ones span several blocks of the prefix cache
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()
    inject(model, TinyLoRAConfig(u=8, rank=2, groups=3))
    return model


WAYS: dict[str, dict[str, Any]] = {
    "merged": {"rounding": "stochastic"},
    "beside": {"rounding": None},
    "plain": {"rounding": "stochastic", "plain": True},
    "packed": {"rounding": "stochastic", "packed": True},
}


@pytest.fixture(scope="module", params=list(WAYS.values()), ids=list(WAYS))
def engine(request, model, tiny_model_folder: Path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from pipeline.rollout.vllm.engine import VLLMEngine

    engine = VLLMEngine(
        str(tiny_model_folder), model, dtype="float32", max_model_len=512, eos_token_ids=[], **request.param
    )
    yield engine
    engine.close()


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, 250, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


def vector(model, scale: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(model.tinylora.v.shape, generator=generator) * scale


def merged_copy(model, v: torch.Tensor):
    """A plain transformers model whose weights are W + ΔW(v), without any adapted layer."""
    from transformers import Qwen2ForCausalLM

    plain = Qwen2ForCausalLM(model.config).eval()
    with torch.no_grad():
        model.tinylora.v.copy_(v)
        layers = adapted_layers(model)
        state = {k.replace(".base_layer", ""): t for k, t in model.state_dict().items() if not k.startswith("tinylora")}
        for name, layer in layers.items():
            state[f"{name}.weight"] = layer.base_layer.weight + layer.delta_weight()
    plain.load_state_dict(state)
    return plain


def greedy(plain, prompt: list[int]) -> tuple[list[int], list[float]]:
    ids, log_probs = list(prompt), []
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            scores = torch.log_softmax(plain(torch.tensor([ids])).logits[0, -1], dim=-1)
            ids.append(int(scores.argmax()))
            log_probs.append(float(scores.max()))
    return ids[len(prompt) :], log_probs


def test_greedy_tokens_and_log_probs_equal_the_merged_model(model, engine) -> None:
    v = vector(model, 0.3)
    engine.generate(prompts(), Sampling(NEW_TOKENS, temperature=0), lambda row, completion: None)  # fills the cache
    engine.refresh(v)
    served = engine.generate(prompts(), Sampling(NEW_TOKENS, temperature=0), lambda row, completion: None)
    plain = merged_copy(model, v)
    for prompt, completion in zip(prompts(), served, strict=True):
        tokens, log_probs = greedy(plain, prompt)
        assert completion.token_ids == tokens
        assert completion.log_probs == pytest.approx(log_probs, abs=1e-4)


def test_refresh_is_a_function_of_the_vector(model, engine) -> None:
    engine.refresh(torch.zeros_like(model.tinylora.v))
    original = engine.digest()
    engine.refresh(vector(model, 0.3))
    first = engine.digest()
    engine.refresh(vector(model, 0.7))
    engine.refresh(vector(model, 0.3))
    assert engine.digest() == first != original
    engine.refresh(torch.zeros_like(model.tinylora.v))
    assert engine.digest() == original


def test_settings_that_a_model_brings_are_not_the_policys(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the penalty on repetition of Qwen2.5-Coder: with it another policy would be sampled than is trained."""
    from transformers import GenerationConfig

    from pipeline.rollout.transformers_engine import TransformersEngine

    own, sampling = TransformersEngine(model, eos_token_ids=[3], pad_token_id=0), Sampling(NEW_TOKENS, seed=5)
    expected = own.generate(prompts(), sampling, lambda row, completion: None)
    brought = GenerationConfig(repetition_penalty=1.3, no_repeat_ngram_size=2, min_p=0.2)
    monkeypatch.setattr(model, "generation_config", brought)
    assert own.generate(prompts(), sampling, lambda row, completion: None) == expected
    assert model.generation_config is brought  # which an export takes along


def test_log_probabilities_that_are_no_numbers_are_an_error(engine) -> None:
    """Of a vector that makes them the cache of the engine would keep some, so one is put in."""

    def spoil(row: int, completion: Completion) -> None:
        completion.log_probs[-1] = math.nan if row == 2 else completion.log_probs[-1]

    with pytest.raises(EngineError, match="1 of 4 completions have .* no numbers.*--dtype bfloat16"):
        engine.generate(prompts(), Sampling(4, temperature=0), spoil)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_log_probs_are_those_of_the_sampling_distribution(model, engine, temperature: float) -> None:
    v = vector(model, 0.3)
    engine.refresh(v)
    from pipeline.rollout.transformers_engine import TransformersEngine

    plain = merged_copy(model, v)  # leaves v in the adapted model too
    own = TransformersEngine(model, eos_token_ids=[3], pad_token_id=0, batch_size=3)
    own.refresh(v)
    for rollouts in (engine, own):
        sampling = Sampling(NEW_TOKENS, temperature=temperature, seed=5)
        finished: dict[int, Completion] = {}
        completions = rollouts.generate(prompts() * 2, sampling, finished.__setitem__)
        assert sorted(finished) == list(range(len(completions)))
        for row, (prompt, completion) in enumerate(zip(prompts() * 2, completions, strict=True)):
            assert finished[row] == completion
            with torch.no_grad():
                logits = plain(torch.tensor([prompt + completion.token_ids])).logits[0, len(prompt) - 1 : -1]
            log_probs = torch.log_softmax(logits / temperature, dim=-1)
            expected = log_probs.gather(-1, torch.tensor(completion.token_ids).unsqueeze(-1)).squeeze(-1)
            assert completion.log_probs == pytest.approx(expected.tolist(), abs=1e-4)
        assert rollouts.generate(prompts() * 2, sampling, lambda row, completion: None) == completions


@pytest.mark.parametrize("truncation", [Truncation(top_k=4), Truncation(top_p=0.6), Truncation(top_k=8, top_p=0.9)])
def test_truncated_log_probs_are_those_of_what_can_be_drawn(model, engine, truncation: Truncation) -> None:
    """Of both engines against the trainer, which takes the support from its own logits: no token out of it is drawn,
    and log-probabilities are renormalised."""
    from pipeline.rollout.transformers_engine import TransformersEngine

    v = vector(model, 0.3)
    engine.refresh(v)
    plain = merged_copy(model, v)
    own = TransformersEngine(model, eos_token_ids=[3], pad_token_id=0, batch_size=3)
    own.refresh(v)
    sampling = Sampling(NEW_TOKENS, temperature=0.8, seed=5, truncation=truncation)
    for rollouts in (engine, own):
        completions = rollouts.generate(prompts() * 2, sampling, lambda row, completion: None)
        differs = 0
        for prompt, completion in zip(prompts() * 2, completions, strict=True):
            tokens = torch.tensor(completion.token_ids).unsqueeze(-1)
            with torch.no_grad():
                logits = plain(torch.tensor([prompt + completion.token_ids])).logits[0, len(prompt) - 1 : -1] / 0.8
            scores = truncation.of(logits)
            assert torch.equal(scores.gather(-1, tokens), logits.gather(-1, tokens))  # all are in the support
            expected = scores.log_softmax(dim=-1).gather(-1, tokens).squeeze(-1)
            assert completion.log_probs == pytest.approx(expected.tolist(), abs=2e-4)
            whole = logits.log_softmax(dim=-1).gather(-1, tokens).squeeze(-1)
            differs += int((expected > whole + 0.01).sum())
        assert differs > 0


def test_rows_join_a_generation_that_is_under_way(model, engine) -> None:
    """One more prompt as soon as rows have ended, two more when nothing is left to generate, then no more."""
    from pipeline.rollout.transformers_engine import TransformersEngine

    own = TransformersEngine(model, eos_token_ids=list(range(5, 40)), pad_token_id=0, batch_size=3)
    v = vector(model, 0.3)
    engine.refresh(v)
    plain = merged_copy(model, v)
    engine._eos_token_ids = list(range(5, 40))
    for rollouts in (engine, own):
        done: list[int] = []
        rows = prompts() * 2
        asked: list[tuple[bool, int]] = []

        def more(idle: bool, done: list[int] = done, rows: list[list[int]] = rows, asked: Any = asked) -> Any:
            new = prompts()[:2] if idle and len(rows) < 10 else prompts()[3:] if not asked else []
            asked.append((idle, len(done)))
            rows += new
            return new

        def finished(row: int, completion: Completion, done: list[int] = done) -> None:
            done.append(row)

        completions = rollouts.generate(list(rows), Sampling(NEW_TOKENS, seed=4), finished, more)
        assert len(completions) == len(rows) >= 10 and sorted(done) == list(range(len(rows)))
        assert engine._plain or (not asked[0][0] and asked[0][1] < 8)  # it joined while others were going on
        for prompt, completion in zip(rows, completions, strict=True):
            tokens = torch.tensor(completion.token_ids).unsqueeze(-1)
            with torch.no_grad():
                logits = plain(torch.tensor([prompt + completion.token_ids])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(dim=-1).gather(-1, tokens).squeeze(-1)
            assert completion.log_probs == pytest.approx(expected.tolist(), abs=2e-4)
    engine._eos_token_ids = []


def test_requests_may_be_made_while_others_are_generated(model, engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few prompts at a time, as on a GPU: nothing is idle before all rows have ended."""
    engine.refresh(vector(model, 0.3))
    rows, greedy = [prompt for prompt in prompts() for _ in range(3)], Sampling(NEW_TOKENS, temperature=0)
    at_once = engine.generate(rows, greedy, lambda *_: None)
    done: list[int] = []
    idle: list[bool] = []
    monkeypatch.setattr(engine, "_pass_tokens", 40)
    later = engine.generate(rows, greedy, lambda row, _: done.append(row), lambda empty: idle.append(empty) or [])  # type: ignore[func-returns-value]
    assert [row.token_ids for row in later] == [row.token_ids for row in at_once]
    assert sorted(done) == list(range(len(rows))) and idle.count(True) == 1 and idle[-1]


def test_a_generation_that_was_broken_off_leaves_nothing_behind(model, engine) -> None:
    engine.refresh(vector(model, 0.3))
    greedy = Sampling(NEW_TOKENS, temperature=0)
    expected = engine.generate(prompts(), greedy, lambda *_: None)

    def broken(row: int, completion: Completion) -> None:
        raise KeyboardInterrupt

    engine._eos_token_ids = list(range(5, 40))  # some end while others go on
    with pytest.raises(KeyboardInterrupt):
        engine.generate(prompts() * 4, Sampling(NEW_TOKENS, seed=2), broken)
    engine._eos_token_ids = []
    engine.refresh(vector(model, 0.3))
    again = engine.generate(prompts(), greedy, lambda *_: None)
    assert [row.token_ids for row in again] == [row.token_ids for row in expected]


def test_completions_are_handed_on_while_others_are_generated(model, engine) -> None:
    """With a stop token that comes up at different times, the first completion arrives well before the last."""
    if engine._plain:
        pytest.skip("LLM.generate hands completions on when all are done")
    import time

    from pipeline.rollout.transformers_engine import TransformersEngine

    own = TransformersEngine(model, eos_token_ids=list(range(5, 40)), pad_token_id=0)
    engine._eos_token_ids = list(range(5, 40))
    for rollouts in (engine, own):
        arrivals: dict[int, float] = {}

        def arrived(row: int, completion: Completion, arrivals: dict[int, float] = arrivals) -> None:
            arrivals[row] = time.perf_counter()

        completions = rollouts.generate(prompts() * 8, Sampling(64, seed=2), arrived)
        lengths = [len(completion.token_ids) for completion in completions]
        assert len(set(lengths)) > 3
        assert max(arrivals.values()) - min(arrivals.values()) > 0.005
    engine._eos_token_ids = []


def test_the_trainer_computes_with_the_engines_own_weights(model, engine) -> None:
    if not engine.holds_merged:
        pytest.skip("an update beside the weights leaves the engine nothing merged to share")
    bank, before = model.tinylora, model.tinylora.v.detach().clone()
    layers = list(adapted_layers(model).values())
    bank.merge_with("stochastic")
    with torch.no_grad():
        bank.v.copy_(vector(model, 0.4))
    engine.refresh(bank.v.detach())
    served = engine.worker.tinylora_weights
    assert [layer.merged_weight().data_ptr() for layer in layers] == [weight.data_ptr() for weight in served]
    assert not any(torch.equal(weight, layer.base_layer.weight) for layer, weight in zip(layers, served, strict=True))
    bank.served.drop()
    for layer, weight in zip(layers, served, strict=True):  # one at a time: they share a scratch
        own = layer.merged_weight()
        assert own.data_ptr() != weight.data_ptr() and torch.equal(own, weight)
    engine.refresh(bank.v.detach())
    assert layers[0].merged_weight().data_ptr() == served[0].data_ptr()
    with torch.no_grad():
        bank.v.mul_(2)
    for layer, weight in zip(layers, served, strict=True):
        own = layer.merged_weight()
        assert own.data_ptr() != weight.data_ptr()
        torch.testing.assert_close(own, layer.base_layer.weight + layer.delta_weight(), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(own, weight, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        bank.v.copy_(before)
    bank.merge_with(None)


def trained_log_probs(model: Any, asked: list[list[int]], completions: list[Completion]) -> torch.Tensor:
    """(rows, tokens) as the training pass computes them now."""
    from pipeline.training.logprobs import log_probs_without_gradient

    ids = [completion.token_ids for completion in completions]
    return log_probs_without_gradient(model, asked, ids, NEW_TOKENS, 1.0, 4096)[0]


def test_engine_and_training_pass_hold_the_same_version(model, engine) -> None:
    """Served, trained on the engine's weights; stepped, the training pass goes on and the engine stays; served again,
    they are one again. A step of a fused optimizer is one that autograd does not count."""
    from adapters.served import count_steps
    from pipeline.policy.loading import Policy
    from pipeline.rollout.transformers_engine import TransformersEngine

    bank, before = model.tinylora, model.tinylora.v.detach().clone()
    optimizer = torch.optim.SGD([bank.v], lr=0.3, fused=True)
    count_steps(optimizer, bank.v)
    own = TransformersEngine(model, eos_token_ids=[], pad_token_id=0)
    for rollouts, merges in ((engine, engine.holds_merged), (own, False)):
        if merges:
            bank.merge_with("stochastic")
        policy = Policy(model, None, rollouts)
        with torch.no_grad():
            bank.v.copy_(vector(model, 0.3))
        for version in (1, 2):
            policy.serve(version)
            assert policy.version == version
            completions = rollouts.generate(prompts(), Sampling(NEW_TOKENS, seed=5), lambda row, completion: None)
            sampled = torch.tensor([completion.log_probs for completion in completions])
            trained = trained_log_probs(model, prompts(), completions)
            torch.testing.assert_close(trained, sampled, rtol=0, atol=2e-4)
            bank.v.grad = torch.ones_like(bank.v)
            optimizer.step()
            moved = trained_log_probs(model, prompts(), completions)
            plain = merged_copy(model, bank.v.detach().clone())
            expected = trained_log_probs(plain, prompts(), completions)
            torch.testing.assert_close(moved, expected, rtol=0, atol=2e-4)
            assert (moved - trained).abs().max() > 0.01
        bank.merge_with(None)
    bank.v.grad = None
    with torch.no_grad():
        bank.v.copy_(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="vLLM has one build of its kernels for GPUs")
def test_vllm_loads_its_own_kernels_after_unsloth(forks: Forks, tmp_path: Path) -> None:
    """Unsloth loads the build for one kind of CPU; beside another one, which vLLM chooses, the process would abort."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    script = tmp_path / "both.py"
    script.write_text("import pipeline.policy.models as m\nm.import_libraries()\nimport vllm._custom_ops\n")
    done = forks.run(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not STARTER_FOLDER.is_dir(), reason="no starter model (scripts/make_starter.py)")
def test_a_closed_policy_gives_back_model_and_engine(forks: Forks, tmp_path: Path) -> None:
    """In a process of its own: the libraries keep frames of whoever imports them first."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    script = tmp_path / "close.py"
    script.write_text("""if True:
        import weakref
        from pipeline.config import resolved, Settings
        from pipeline.environment import prepare_environment
        from pipeline.policy.models import choose_model
        from pipeline.policy.loading import load_policy

        choice = choose_model("starter")
        prepare_environment(choice.location)
        policy = load_policy(choice, resolved(Settings(vllm=True), starter=True, gpu=False))
        kept = [policy.model, policy.model.tinylora.v, policy.engine.llm, policy.engine.worker.tinylora_weights[0]]
        kept = [weakref.ref(one) for one in kept]
        policy.close()
        assert [reference() is None for reference in kept] == [True] * 4
    """)
    done = forks.run(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
