"""The merge: exact at zero, unbiased when stochastic, and what nearest rounding loses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import AdapterError
from adapters.merge import delta_weight, kept_share, merge_weight, mixing, projection, round_to, rounding_bits


def weight_and_delta(scale: float, size: int = 768) -> tuple[torch.Tensor, torch.Tensor]:
    """A bf16 weight and a rank-2 ΔW with ‖ΔW‖/‖W‖ = scale."""
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(size, size, generator=generator) * 0.02).bfloat16()
    delta = torch.randn(size, 2, generator=generator) @ torch.randn(2, size, generator=generator)
    return base, delta * (scale * base.float().norm() / delta.norm())


def test_float16_loses_less_of_a_small_update_than_bf16() -> None:
    base, delta = weight_and_delta(1e-3)
    assert share(base.half(), delta, "stochastic") == pytest.approx(1.0, abs=0.01)
    assert share(base.half(), delta, "nearest") > 0.9 > 0.7 > share(base, delta, "nearest")


def share(base: torch.Tensor, delta: torch.Tensor, rounding) -> float:
    kept, wanted = kept_share(base, merge_weight(base, delta, rounding, salt=7), delta)
    return float(kept / wanted)


def test_stochastic_rounding_keeps_a_small_update_and_nearest_loses_it() -> None:
    base, delta = weight_and_delta(1e-4, size=2048)
    assert share(base, delta, "stochastic") == pytest.approx(1.0, abs=0.02)
    assert share(base, delta, "nearest") < 0.15


@pytest.mark.parametrize("scale", [1e-3, 1e-2, 3e-2])
def test_stochastic_rounding_keeps_larger_updates(scale: float) -> None:
    assert share(*weight_and_delta(scale), "stochastic") == pytest.approx(1.0, abs=0.02)


def test_float32_keeps_everything() -> None:
    base, delta = weight_and_delta(1e-3)
    assert share(base.float(), delta, "stochastic") == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zero_delta_gives_the_base_bit_for_bit(rounding, dtype: torch.dtype) -> None:
    base = torch.randn(64, 64).to(dtype)
    base[0, 0], base[0, 1] = -0.0, 0.0
    merged = merge_weight(base, torch.zeros(64, 64), rounding, salt=1)
    assert torch.equal(merged.view(torch.uint8), base.view(torch.uint8))


@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False), min_size=1, max_size=50),
    st.integers(0, 2**31 - 1),
)
@settings(deadline=None)
def test_stochastic_rounding_picks_a_neighbour_and_is_deterministic(values: list[float], salt: int) -> None:
    exact = torch.tensor([values])
    rounded = round_to(exact, torch.bfloat16, "stochastic", salt)
    assert torch.equal(rounded, round_to(exact, torch.bfloat16, "stochastic", salt))
    towards_zero = exact.view(torch.int32).bitwise_and(-65536).view(torch.float32)
    away = (towards_zero.view(torch.int32) + 65536).view(torch.float32)
    assert ((rounded.float() == towards_zero) | (rounded.float() == away)).all()
    on_grid = exact.bfloat16()
    assert torch.equal(round_to(on_grid.float(), torch.bfloat16, "stochastic", salt), on_grid)


@given(st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=50), st.integers(0, 2**31 - 1))
@settings(deadline=None)
def test_float16_gets_one_of_two_neighbours_too(values: list[float], salt: int) -> None:
    exact = torch.tensor([values])
    rounded = round_to(exact, torch.float16, "stochastic", salt).float()
    step = torch.exp2(torch.frexp(exact.abs().clamp(min=2.0**-14))[1] - 11.0)  # between neighbours; below: subnormal
    assert ((rounded - exact).abs() < step * (1 + 2**-13)).all()
    on_grid = exact.half()
    assert torch.equal(round_to(on_grid.float(), torch.float16, "stochastic", salt), on_grid)


@pytest.mark.parametrize("dtype, step", [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_stochastic_rounding_is_unbiased(dtype: torch.dtype, step: float) -> None:
    value = torch.full((400, 501), 1.0 + step * 0.3)
    mean = round_to(value, dtype, "stochastic", 5).double().mean()
    assert float(mean) == pytest.approx(1.0 + step * 0.3, abs=0.004 * step)


def test_rounding_bits_are_uniform_and_unrelated_between_rows_columns_and_salts() -> None:
    bits = torch.stack([rounding_bits(256, 255, salt).double() for salt in (0, 1, 2**31 - 1)]) / 2**16
    for axis in range(3):  # means along every axis are those of independent uniform numbers
        means = bits.mean(dim=axis)
        assert (means - 0.5).abs().max() < 5.5 * (1 / 12 / bits.shape[axis]) ** 0.5
    centred = bits - 0.5
    shifted = {"row": centred.roll(1, 1), "column": centred.roll(1, 2), "two columns": centred.roll(2, 2)}
    shifted["salt"] = centred.roll(1, 0)
    for other in shifted.values():
        assert abs(float((centred * other).mean())) * 12 < 5 / bits.numel() ** 0.5
    crossed = centred[:, 1:, 1:] * centred[:, :-1, :-1] * centred[:, 1:, :-1] * centred[:, :-1, 1:]
    assert abs(float(crossed.mean())) * 144 < 5 / crossed.numel() ** 0.5  # no rank-1 pattern


def test_stochastic_rounding_to_other_formats_is_refused() -> None:
    with pytest.raises(AdapterError, match="bfloat16 and float16"):
        round_to(torch.zeros(2, 2), torch.float64, "stochastic", 0)


def test_projections_are_fixed_by_seed_and_name() -> None:
    p = projection(512, 2, seed=0, name="layer.0.q")
    assert torch.equal(p, projection(512, 2, seed=0, name="layer.0.q"))
    assert not torch.equal(p, projection(512, 2, seed=1, name="layer.0.q"))
    assert not torch.equal(p, projection(512, 2, seed=0, name="layer.1.q"))
    assert p.std() == pytest.approx(2**-0.5, rel=0.1)


@given(u=st.integers(1, 8), rank=st.integers(1, 4), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_delta_is_linear_in_v_and_matches_its_definition(u: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(9, rank, generator=generator), torch.randn(rank, 7, generator=generator)
    p, v = projection(u, rank, seed, "m"), torch.randn(u, generator=generator)
    expected = sum(v[i] * (left @ p[i] @ right) for i in range(u))
    torch.testing.assert_close(delta_weight(left, mixing(v, p), right), expected, rtol=1e-4, atol=1e-4)


def test_mixing_stays_in_float32_under_autocast() -> None:
    v, p = torch.randn(32), projection(32, 2, 0, "m")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mixing(v, p)
    assert inside.dtype == torch.float32 and torch.equal(inside, mixing(v, p))
