"""Finding things by what they say of themselves, without looking at all of them: a node has a thousand volumes."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
W = TypeVar("W", bound=Hashable)


class Index(Generic[K, V, W]):
    """Values under the words that *words* finds in each; whoever owns the values tells of every change."""

    def __init__(self, words: Callable[[V], Iterable[W]]) -> None:
        self._words = words
        self._values: dict[W, dict[K, V]] = {}
        self._known: dict[K, tuple[W, ...]] = {}

    def put(self, key: K, value: V) -> None:
        """The value of *key* from now on."""
        words = tuple(dict.fromkeys(self._words(value)))
        before = self._known.get(key, ())
        for word in set(before) - set(words):
            self._forget(key, word)
        for word in words:
            self._values.setdefault(word, {})[key] = value
        self._known[key] = words

    def drop(self, key: K) -> None:
        """There is no *key* any more, or there never was."""
        for word in self._known.pop(key, ()):
            self._forget(key, word)

    def _forget(self, key: K, word: W) -> None:
        values = self._values[word]
        del values[key]
        if not values:
            del self._values[word]

    def of(self, word: W) -> list[V]:
        """The values that say *word*, in the order in which they began to."""
        return list(self._values.get(word, {}).values())

    @property
    def words(self) -> Container[W]:
        """The words that some value says; always as of now."""
        return self._values.keys()
