"""Looks for what must be nowhere: in files, in the processes of the machine, in what commands print."""

from __future__ import annotations

import base64
import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from fusevol.transport import mount


class Leaks:
    """Finds *values*, plain or in base64."""

    def __init__(self, *values: str) -> None:
        self._forms = {form for v in values for form in (v.encode(), base64.b64encode(v.encode()))}

    def there(self, text: bytes | str) -> bool:
        """Whether *text* has one of them."""
        given = text.encode() if isinstance(text, str) else text
        return any(form in given for form in self._forms)

    def files(self, *directories: Path) -> list[str]:
        """The files in *directories*, but not in what is mounted there, that have one in their name or in them."""
        found = []
        for directory in directories:
            below = {m.mountpoint for m in mount.below(directory)}
            for top, folders, names in os.walk(directory):
                folders[:] = [f for f in folders if os.path.join(top, f) not in below]
                paths = [Path(top, name) for name in names]
                found += [str(p) for p in paths if p.is_file() and (self.there(str(p)) or self.there(p.read_bytes()))]
        return sorted(found)

    def processes(self) -> Iterator[tuple[int, str]]:
        """Processes that have one in their command line or environment, and which of both; not this one's own."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                for part in ("cmdline", "environ"):
                    with contextlib.suppress(OSError):
                        if self.there((entry / part).read_bytes()):
                            yield int(entry.name), part

    @contextlib.contextmanager
    def watched(self) -> Iterator[set[tuple[str, str]]]:
        """Looks at all processes all the time: the program that had one, and where."""
        seen: set[tuple[str, str]] = set()
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.001):
                for pid, part in self.processes():
                    with contextlib.suppress(OSError):
                        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                        seen.add((" ".join(words[1:5]), part))

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield seen
        finally:
            over.set()
            thread.join(10)

    def among(self, texts: Iterable[tuple[str, str]]) -> list[str]:
        """The names of those *texts* that have one."""
        return [name for name, text in texts if self.there(text)]
