"""The fuse module's parameter that lets requests come over io_uring: one for all mounts of the machine to come."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from fusevol.errors import UnavailableError

PARAMETER: Final = Path("/sys/module/fuse/parameters/enable_uring")


def enabled() -> bool:
    """Whether the kernel's FUSE offers io_uring now."""
    try:
        return PARAMETER.read_text().strip() == "Y"
    except OSError:
        return False


def switch_on() -> None:
    """Have the kernel's FUSE offer io_uring. Raises :class:`UnavailableError` with the reason when it will not."""
    if not PARAMETER.exists():
        with contextlib.suppress(OSError):  # the module comes when its device is opened
            os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    if enabled():
        return
    try:
        # without O_CREAT: sysfs would answer a missing parameter with a refusal that misleads
        fd = os.open(PARAMETER, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"Y")
        finally:
            os.close(fd)
    except FileNotFoundError as e:
        raise UnavailableError(
            "FUSE over io_uring cannot be switched on, since this kernel has none (Linux 6.14 has): requests come over "
            "/dev/fuse."
        ) from e
    except OSError as e:
        raise UnavailableError(
            f"FUSE over io_uring cannot be switched on ({PARAMETER}: {e.strerror}), so requests come over /dev/fuse: "
            "run `echo Y` into that file as root of the machine, or configure ioUring: auto."
        ) from e
