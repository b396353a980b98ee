"""Difficulty windows: "800:1200", "A:C", "easy:medium", ":HARD".

Data sets speak of difficulty in their own words, so a problem's `difficulty` holds one or more labels, each on one
scale: "B 1200" is the second problem of a contest, rated 1200. A window is made of two labels of one scale, both
included; an open end has no limit. Several windows, separated by commas, keep what any of them keeps: "A:B,easy:easy"
is letters A and B where there are letters, and easy where there are words."""

from __future__ import annotations

from collections.abc import Callable

from storage.errors import ConfigError

# Words in order; data sets use some of them. Any two words of one row can be compared.
SCALES: tuple[tuple[str, ...], ...] = (
    ("easy", "medium", "medium_hard", "hard", "harder", "hardest", "very_hard"),
    ("introductory", "interview", "competition"),
)
_RANKS = {word: (f"words {row}", float(rank)) for row, words in enumerate(SCALES) for rank, word in enumerate(words)}


def rank(label: str) -> tuple[str, float] | None:
    """(scale, place on it) of a label; None for one that is on no scale."""
    label = label.strip().lower()
    if label in _RANKS:
        return _RANKS[label]
    if len(label) == 1 and "a" <= label <= "z":
        return "letters", float(ord(label))
    try:
        value = float(label)
    except ValueError:
        return None
    return ("numbers", value) if value == value else None


def parse_windows(text: str) -> Callable[[str], bool]:
    """A predicate of a problem's `difficulty`. Raises `ConfigError`."""
    windows = [_parse_window(part) for part in text.split(",")]

    def keeps(difficulty: str) -> bool:
        ranks = [found for label in difficulty.split() if (found := rank(label)) is not None]
        return any(scale == s and low <= place <= high for s, place in ranks for scale, low, high in windows)

    return keeps


def _parse_window(text: str) -> tuple[str, float, float]:
    low_text, colon, high_text = text.strip().partition(":")
    if not colon:
        high_text = low_text
    ends = [(label, rank(label)) for label in (low_text, high_text) if label.strip()]
    for label, found in ends:
        if found is None:
            raise ConfigError(
                f"--difficulty {label!r} is on no scale; use numbers, letters, or words such as easy and hard"
            )
    scales = {found[0] for _, found in ends if found}
    if len(scales) != 1:
        raise ConfigError(
            f"--difficulty {text!r} needs one or two ends of one scale, such as 800:1200 or easy:medium"
        )
    low, high = rank(low_text), rank(high_text)
    low_place, high_place = low[1] if low else float("-inf"), high[1] if high else float("inf")
    if low_place > high_place:
        raise ConfigError(f"--difficulty {text!r} is empty: its lower end is above its upper end")
    return scales.pop(), low_place, high_place
