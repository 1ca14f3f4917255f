"""One way to put other forwards on modules for a while: whoever needs it, they all come off again.

What a module has of its own, in its instance's dictionary, is put there and put back: no class is
changed, torch's `__setattr__` is not run, and what somebody else has put there is still there
afterwards. Swaps lie within one another: the last one on is the first one off.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

_ABSENT = object()


class ForwardSwap:
    """A context in which `put` changes what modules have; its end, however it ends, undoes it."""

    def __init__(self) -> None:
        self._before: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def put(self, module: Any, **entries: Any) -> None:
        """Give `module` these attributes of its own, such as `forward`, in place of what it has."""
        own = module.__dict__
        self._before.append((own, {name: own.get(name, _ABSENT) for name in entries}))
        own.update(entries)

    def __enter__(self) -> ForwardSwap:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._before:
            own, entries = self._before.pop()
            for name, value in entries.items():
                if value is _ABSENT:
                    own.pop(name, None)
                else:
                    own[name] = value
