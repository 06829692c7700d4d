"""One small registry for everything that is chosen by name: algorithms, advantages, rewards, tasks, samplers.

Entries register themselves with a decorator when their module is imported.  Third-party packages can
add entries through the entry-point group ``steelyard.<kind>s``
(``[project.entry-points."steelyard.rewards"]``); they are imported only when a name is asked for that is not
known yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from steelyard.errors import ConfigError, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """A named, ordered collection; a duplicate name is an error, an unknown name suggests the nearest."""

    def __init__(self, kind: str, group: str | None = None) -> None:
        self.kind = kind
        self.group = group or f"steelyard.{kind}s"
        self._entries: dict[str, T] = {}

    def register(self, name: str, entry: T) -> T:
        """Add ``entry`` under ``name`` and return it."""
        if name in self._entries and self._entries[name] is not entry:
            raise ConfigError(f"{self.kind} '{name}' is registered twice")
        self._entries[name] = entry
        return entry

    def __call__(self, name: str) -> Callable[[T], T]:
        """Use as a decorator: ``@tasks("arithmetic")``."""
        return lambda entry: self.register(name, entry)

    def get(self, name: str, *, where: str = "") -> T:
        """Return the entry called ``name``; raise :class:`ConfigError` naming the nearest choice."""
        if name not in self._entries:
            self._load_plugins(name)
        if name not in self._entries:
            raise ConfigError(unknown(self.kind, name, self._entries, where=where))
        return self._entries[name]

    def _load_plugins(self, name: str) -> None:
        for point in entry_points(group=self.group):
            if point.name == name:
                entry = point.load()
                if name not in self._entries:  # a decorated function has registered itself on import
                    self.register(name, entry)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> Iterator[tuple[str, T]]:
        """Iterate over ``(name, entry)`` in registration order."""
        return iter(self._entries.items())
