"""What a declared setting refuses, and in which words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic.dataclasses import dataclass

from data.settings import Preparation
from pipeline.config import RunConfig, Settings, resolved
from pipeline.config.evaluation import EvalSettings
from pipeline.config.warm_up import WarmUp
from pipeline.tasks import TASKS
from rewards.scoring import SCHEMES
from storage.errors import ConfigError
from storage.settings import STRICT, Declared, Setting, declared, same, setting

GROUPS: dict[type, dict[str, Any]] = {
    Settings: {},
    EvalSettings: {},
    WarmUp: {"output_dir": "/nowhere/here"},
    Preparation: {"source": "gsm8k", "out": "x.jsonl"},
}
BOUNDED = [(group, known) for group in GROUPS for known in declared(group) if known.bounds]


@dataclass(frozen=True, config=STRICT)
class Oven(Declared):
    """All that a declaration can say."""

    name: str = setting(..., "Whose it is.")
    heat: float = setting(180.0, "Degrees.", gt=0, le=300, why=", where bread burns", flag="--heat -t")
    shelf: Literal["low", "high"] | None = setting(None, "Where the bread is.")
    loaves: tuple[str, ...] = setting((), "Repeatable.", flag="--loaf")
    fan: bool = setting(True, "Move the air.")


@dataclass(frozen=True, config=STRICT)
class Stove(Declared):
    heat: float = same(Oven, "heat")


def test_a_declaration_tells_all_that_an_option_needs() -> None:
    name, heat, shelf, loaves, fan = declared(Oven)
    assert name.required and name.default is None and name.option == "--name" and name.type is str
    assert heat.flag == "--heat -t" and heat.option == "--heat" and heat.default == 180.0
    assert heat.bounds == ["greater than 0", "at most 300"] and heat.sentence == "Degrees."
    assert shelf.choices == ("low", "high") and shelf.type is str and not shelf.required
    assert loaves.repeats and loaves.type is str and loaves.option == "--loaf"
    assert fan.flag == "--fan/--no-fan" and fan.option == "--fan" and fan.type is bool


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"heat": 0}, "--heat must be greater than 0, not 0"),
        ({"heat": 301.5}, "--heat must be at most 300, where bread burns, not 301.5"),
        ({"heat": float("nan")}, "--heat must be finite, not nan"),
        ({"heat": float("inf")}, "--heat must be finite, not inf"),
        ({"heat": "hot"}, "heat must be of type float, not 'hot'"),
        ({"heat": True}, "heat must be of type float, not True"),
        ({"shelf": "top"}, "--shelf must be one of low, high, not 'top'"),
        ({"fan": 1}, "fan must be of type bool, not 1"),
        ({"loaves": (1,)}, "loaves must be of type str, not 1"),
    ],
)
def test_every_refusal_is_one_exact_sentence(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        Oven(name="ours", **wrong)
    assert str(error.value) == sentence


def test_a_field_that_is_missing_or_unknown_is_a_fault_of_the_program() -> None:
    for fields in ({}, {"name": "ours", "colour": "red"}):
        with pytest.raises(TypeError, match="Oven"):
            Oven(**fields)  # type: ignore[arg-type]


def test_a_whole_number_may_stand_for_any_and_a_shared_declaration_refuses_alike() -> None:
    assert Oven(name="ours", heat=200).heat == 200 and Stove().heat == 180
    with pytest.raises(ConfigError, match="--heat must be greater than 0, not -1"):
        Stove(heat=-1.0)


@pytest.mark.parametrize("group, known", BOUNDED, ids=lambda x: x.name if isinstance(x, Setting) else x.__name__)
@given(share=st.floats(1e-3, 1e3))
def test_values_beyond_a_bound_are_refused_by_the_option_s_name(group: type, known: Setting, share: float) -> None:
    for bound in known.bounds:
        limit = float(bound.rpartition(" ")[2])
        upwards = 1 if bound.startswith(("below", "at most")) else -1
        value = limit + upwards * share if known.type is float else int(limit) + upwards * (1 + int(share))
        with pytest.raises(ConfigError, match=f"^{known.option} must "):
            group(**GROUPS[group] | {known.name: value})


def test_a_resolved_run_keeps_the_bounds() -> None:
    config = resolved(Settings(), starter=True, gpu=False)
    assert isinstance(replace(config, steps=3), RunConfig)
    with pytest.raises(ConfigError, match="--steps must be greater than 0, not 0"):
        replace(config, steps=0)


def test_choices_are_those_that_the_code_knows() -> None:
    known = {setting.name: setting.choices for setting in declared(Settings)}
    assert set(known["reward"]) == set(SCHEMES) and set(known["task"]) == set(TASKS)
