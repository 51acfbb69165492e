"""Equal pages of keeper and volume servers, merged by the system (KSM): a fifth of the memory for each idle volume.

Off unless the configuration asks for it. The processes of all volumes are forked of one and differ in little; but who
can measure how long a write into memory takes may find out that another process has a page of the same content.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

_RUN: Final = Path("/sys/kernel/mm/ksm/run")

log = logging.getLogger(__name__)


def switch_on() -> None:
    """Have this machine merge the pages of processes that have asked for it. If it will not, nothing is lost."""
    try:
        if _RUN.read_text().strip() != "1":
            _RUN.write_text("1")
            log.info("This machine merges equal pages from now on (%s).", _RUN)
    except OSError as e:
        log.warning("Equal pages are not merged, though mergeMemory says so: %s: %s.", _RUN, e.strerror)
