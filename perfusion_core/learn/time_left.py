"""How long something that is done step by step will still take, in words."""

from __future__ import annotations


def time_left(seconds: float, done: int, total: int) -> str:
    """What is left after `done` of `total` steps took `seconds`, such as "2 min 5 s left"."""
    left = round(seconds / done * (total - done)) if done else 0
    hours, minutes, rest = left // 3600, left // 60 % 60, left % 60
    if hours:
        return f"{hours} h {minutes} min left"
    return f"{minutes} min {rest} s left" if minutes else f"{rest} s left"
