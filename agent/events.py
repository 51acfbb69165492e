"""Events: what happened to an object, said once and counted when it happens again."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from typing import Any

import trio

from agent.store import Database, now

Obj = dict[str, Any]
KEPT = 1000
"""Events that are kept; the longest unseen ones go first."""

log = logging.getLogger(__name__)


class Recorder:
    """Writes and lists events. For the trio loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._events: dict[str, Obj] = {}
        for name, body in database.read("SELECT id, body FROM events ORDER BY seen"):
            self._events[name] = json.loads(body)
        self._lock = trio.Lock()

    async def normal(self, regarding: Obj, reason: str, message: str) -> None:
        """Something happened as it should."""
        await self._record("Normal", regarding, reason, message)

    async def warning(self, regarding: Obj, reason: str, message: str) -> None:
        """Something is wrong that the user should know of."""
        await self._record("Warning", regarding, reason, message)

    def list(self, uid: str | None = None) -> list[Obj]:
        """The events, of one object or all, the longest unseen first."""
        return [e for e in self._events.values() if uid is None or e["regarding"]["uid"] == uid]

    async def _record(self, kind: str, regarding: Obj, reason: str, message: str) -> None:
        metadata = regarding["metadata"]
        uid = str(metadata.get("uid", ""))
        name = hashlib.sha256(json.dumps([uid, kind, reason, message]).encode()).hexdigest()[:32]
        async with self._lock:
            old = self._events.pop(name, None)
            event = {
                "type": kind,
                "reason": reason,
                "message": message,
                "count": old["count"] + 1 if old else 1,
                "firstTimestamp": old["firstTimestamp"] if old else now(),
                "lastTimestamp": now(),
                "regarding": {
                    "kind": regarding["kind"],
                    "namespace": metadata.get("namespace", ""),
                    "name": metadata["name"],
                    "uid": uid,
                },
            }
            self._events[name] = event
            surplus = list(self._events)[: max(0, len(self._events) - KEPT)]
            for one in surplus:
                del self._events[one]
            log.info("%s %s/%s: %s: %s", kind, regarding["kind"], metadata["name"], reason, message)
            await self._database.write(
                ("INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?)", (name, uid, time.time(), json.dumps(event))),
                *(("DELETE FROM events WHERE id = ?", (one,)) for one in surplus),
                durable=False,
            )
