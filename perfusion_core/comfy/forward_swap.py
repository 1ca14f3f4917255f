"""The one mechanism that replaces the forwards of modules for a while, and restores them.

It writes to the module's own `__dict__` and restores what was there: no class is changed, torch's
`__setattr__` does not run, and an object patch of another pack is there again afterwards. Swaps
nest: the last one put on is the first one taken off.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

_ABSENT = object()


class ForwardSwap:
    """A context whose end, also by an error or a Cancel, undoes every `put`."""

    def __init__(self) -> None:
        self._before: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def put(self, module: Any, **entries: Any) -> None:
        """Set attributes such as `forward` on the instance `module` until the context ends."""
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
