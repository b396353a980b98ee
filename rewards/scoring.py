"""From a verdict to a reward in [0, 1].

    tiered          0 for no code, no compilation or no tests; else credit + (1 - credit) * passed / total
    pass-rate       passed / total
    binary          1 if all tests pass, else 0
    compile-or-all  the compile credit for a program that compiles, 1 if all tests pass; nothing between
    perfect-bonus   0.5 * passed / total, and 0.5 more if all tests pass

Beware of what a reward for compiling alone invites: with the default credit of 0.5, `int main(){}` earns half of the
full reward on every problem, as much as an honest attempt that fails all tests and *more* than one with a typo. A
policy whose problems are too hard for it drifts towards such programs. Lower `compile_credit` (0.1, or 0) once most
completions compile; within a group whose programs all compile, the credit cancels out of the advantage.
"""

from __future__ import annotations

from rewards.errors import GraderError
from rewards.verdict import Status, Verdict

SCHEMES = ("tiered", "pass-rate", "binary", "perfect-bonus", "compile-or-all")
COMPILE_CREDIT = 0.5
PERFECT_BONUS = 0.5


def check_scheme(scheme: str, compile_credit: float = COMPILE_CREDIT) -> None:
    """Raise `GraderError` for an unknown scheme or a credit outside [0, 1)."""
    if scheme not in SCHEMES:
        raise GraderError(f"reward scheme {scheme!r} is unknown; use one of {', '.join(SCHEMES)}")
    if not 0 <= compile_credit < 1:
        raise GraderError(f"compile credit {compile_credit} is outside [0, 1)")


def score(verdict: Verdict, scheme: str = "tiered", compile_credit: float = COMPILE_CREDIT) -> float | None:
    """The reward, or None for `NO_VERDICT`: the sample must be masked, not counted as a failure of the policy."""
    check_scheme(scheme, compile_credit)
    if verdict.status is Status.NO_VERDICT:
        return None
    if not verdict.compiled or verdict.total == 0:
        return 0.0
    rate = verdict.passed / verdict.total
    if scheme == "tiered":
        return 1.0 if verdict.accepted else compile_credit + (1 - compile_credit) * rate
    if scheme == "compile-or-all":
        return 1.0 if verdict.accepted else compile_credit
    if scheme == "binary":
        return float(verdict.accepted)
    if scheme == "perfect-bonus":
        return (1 - PERFECT_BONUS) * rate + PERFECT_BONUS * verdict.accepted
    return rate
