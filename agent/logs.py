"""The agent's log on standard error: lines for people, or one JSON object a line for machines.

What a record is about (the request that it belongs to, the volume or object that is worked on) is known where work
begins, and not where something is logged: so it is kept beside the task, and goes with whatever that starts.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Final, Literal

Format = Literal["text", "json"]
FORMATS: Final[tuple[Format, ...]] = ("text", "json")

_about: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("about")


@contextlib.contextmanager
def about(**fields: str) -> Iterator[None]:
    """Have all records of this task, and of what it starts in here, say ``request``, ``volume`` or ``object``."""
    token = _about.set({**_about.get({}), **fields})
    try:
        yield
    finally:
        _about.reset(token)


class Json(logging.Formatter):
    """One object a line: ``time``, ``level``, ``logger``, ``message``, ``exception``, and what it is about."""

    def format(self, record: logging.LogRecord) -> str:
        """See above; the time is UTC, in milliseconds."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_about.get({}),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said)


def set_up(level: str, form: Format) -> None:
    """Log to standard error, unless somebody (a test) has set logging up already."""
    root = logging.getLogger()
    if not any(isinstance(h, logging.StreamHandler) for h in root.handlers):
        handler = logging.StreamHandler(sys.stderr)
        text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
        handler.setFormatter(Json() if form == "json" else text)
        root.addHandler(handler)
    root.setLevel(level.upper())
