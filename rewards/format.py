"""Tags in a completion, found without regular expressions: the cost is bounded, whatever the text.

The reward functions of tasks without programs (`rewards/countdown.py`, `rewards/gsm8k.py`) and of Q share these rules:

- A block is `<tag>...</tag>`. The *last* closing tag counts, with the last opening tag before it, so that drafts
  inside the
  reasoning do no harm, and a completion that lists several answers is judged by one of them.
- Only the last `MAX_CHARACTERS` characters are searched for an answer, and a longer completion has no format worth a
  reward. 16,384 tokens of ordinary text are about that long.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_CHARACTERS = 65_536


def last_block(text: str, tag: str) -> str | None:
    """What stands in the last `<tag>...</tag>`, or None. Nested tags leave a tag inside, which no answer may hold."""
    text = text[-MAX_CHARACTERS:]
    end = text.rfind(f"</{tag}>")
    if end < 0:
        return None
    start = text.rfind(f"<{tag}>", 0, end)
    return text[start + len(tag) + 2 : end] if start >= 0 else None


def blocks_in_order(text: str, tags: Sequence[str], separator: str | None = None) -> list[str] | None:
    """The contents when the text is nothing but one block of each tag, in this order; else None.

    Args:
        text: white space around it does not count.
        tags: each opening and closing tag must occur exactly once in the whole text.
        separator: what must stand between two blocks; None allows any white space.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    text = text.strip()
    contents: list[str] = []
    position = 0
    for index, tag in enumerate(tags):
        opening, closing = f"<{tag}>", f"</{tag}>"
        if text.count(opening) != 1 or text.count(closing) != 1:
            return None
        start, end = text.find(opening), text.find(closing)
        between = text[position:start]
        allowed = not between.strip() if separator is None else between == separator
        if end < start or (between if index == 0 else not allowed):
            return None
        contents.append(text[start + len(opening) : end])
        position = end + len(closing)
    return contents if position == len(text) else None
