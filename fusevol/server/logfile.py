"""The server's log: plain lines in a file of bounded size."""

from __future__ import annotations

import logging
import logging.handlers
import time
from pathlib import Path
from typing import Final

_SIZE: Final = 1 << 20
"""Bytes after which the file is renamed to ``….1``, in place of the one before it."""


def set_up(file: Path, mount_id: str) -> None:
    """Send all logging of this process to *file* (mode 0600)."""
    file.touch(mode=0o600)
    handler = logging.handlers.RotatingFileHandler(file, maxBytes=_SIZE, backupCount=1)
    form = logging.Formatter(
        f"%(asctime)s.%(msecs)03dZ %(levelname)s {mount_id} %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    form.converter = time.gmtime
    handler.setFormatter(form)
    handler.addFilter(_lower_interrupted)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _lower_interrupted(record: logging.LogRecord) -> bool:
    """pyfuse3 logs an error when a client was killed before its answer came (ENOENT): that is nobody's fault."""
    return not (
        record.name == "pyfuse3"
        and "fuse_reply_" in str(record.msg)
        and isinstance(record.args, tuple)
        and record.args[:1] == ("No such file or directory",)
    )
