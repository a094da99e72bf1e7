"""What waits, taken in turns: who sends much waits behind his own, and not before others'."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Turns"]

_T = TypeVar("_T")


class Turns(Generic[_T]):
    """A queue for each sender; items are taken from one after the other (round robin; Nagle 1985, RFC 970).

    Example:
        >>> waiting = Turns()
        >>> for sender, item in [("a", 1), ("a", 2), ("a", 3), ("b", 4)]:
        ...     waiting.add(sender, item)
        >>> [waiting.next() for _ in range(5)]
        [1, 4, 2, 3, None]
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[_T]] = {}  # whose turn it is comes first

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, sender: Hashable, item: _T) -> None:
        """Put an item behind those of its sender."""
        self._waiting.setdefault(sender, deque()).append(item)

    def next(self, wanted: Callable[[_T], bool] = lambda _: True) -> _T | None:
        """Take the first item that is wanted of the sender whose turn it is; None if there is none."""
        for sender, items in self._waiting.items():
            place = next((place for place, item in enumerate(items) if wanted(item)), None)
            if place is not None:
                item = items[place]
                del items[place], self._waiting[sender]
                if items:
                    self._waiting[sender] = items  # behind the others
                return item
        return None
