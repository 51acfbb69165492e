"""What happened to the servers of a keeper, kept until whoever acts on it has heard it."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from fusevol.keeper.wire import Message

_KEPT: Final = 1000
"""More than that, and the oldest are forgotten: they are news, not state."""
PAGE: Final = 16
"""Notes in one answer: they are within a message, whatever is in names and words."""
WORDS: Final = 300
"""Characters that are kept of a text."""


class Notes:
    """See above. There is one listener; what it asks for is what it has not heard yet."""

    def __init__(self) -> None:
        self._serials = itertools.count(1)
        self._kept: deque[Message] = deque(maxlen=_KEPT)

    def add(self, what: str, mount_id: str, **more: Any) -> None:
        """One more."""
        note = {"serial": next(self._serials), "time": time.time(), "what": what, "mount_id": mount_id}
        self._kept.append(note | {k: v[:WORDS] if isinstance(v, str) else v for k, v in more.items()})

    def again(self, notes: Iterable[Message]) -> None:
        """*notes* of another keeper, which nobody has heard yet."""
        for note in notes:
            self._kept.append({**note, "serial": next(self._serials)})

    def after(self, serial: int) -> list[Message]:
        """Those after *serial*, the oldest first, as many as fit; those before are heard, and forgotten."""
        while self._kept and self._kept[0]["serial"] <= serial:
            self._kept.popleft()
        return list(itertools.islice(self._kept, PAGE))
