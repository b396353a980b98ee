"""What a TinyLoRA adapter is made of: how many scalars, in how many groups, on which modules."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from storage.errors import UserError

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Rule = Literal["normal", "principal", "cuda-full", "cuda-diag", "cuda-diag-scaled"]
RULES = get_args(Rule)
PRINCIPAL = "principal"  # set after injection, from the policy's own completions


class AdapterError(UserError, ValueError):
    """An adapter that cannot be built or loaded; the message says what to change."""


@dataclass(frozen=True)
class TinyLoRAConfig:
    """The numbers that, with a base model, define every adapter weight but `v`.

    u: scalars per group. rank: singular pairs kept per module. groups: how many vectors `v` the modules share, in
    contiguous groups of near-equal size by depth. targets: names of the replaced modules. seed: draws every `P`.
    projections: the rule that gives them: `normal` (random), `principal` (`adapters/principal.py`), or one of an
    imported checkpoint (`adapters/legacy.py`).
    """

    u: int = 32
    rank: int = 2
    groups: int = 1
    targets: tuple[str, ...] = PROJECTIONS
    seed: int = 0
    projections: str = "normal"

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        for name in ("u", "rank", "groups"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise AdapterError(f"{name} must be an integer of at least 1, not {value!r}")
        if self.projections not in RULES:
            raise AdapterError(f"projections must be one of {', '.join(RULES)}, not {self.projections!r}")
        if not self.targets:
            raise AdapterError("targets is empty: name at least one projection, such as q_proj")

    def group_of(self, index: int, modules: int) -> int:
        """Group of module `index` out of `modules`, counted in order of depth."""
        return index * self.groups // modules

    def meaning(self) -> TinyLoRAConfig:
        """What of this a `v` depends on: principal projections are kept with it, so no seed draws them again."""
        return replace(self, seed=0) if self.projections == PRINCIPAL else self

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"targets": list(self.targets)}
