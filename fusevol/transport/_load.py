"""Imports pyfuse3 without trio.

pyfuse3 imports trio when it is imported, and reaches it only through its module attribute ``trio``, which is replaced
before use (:mod:`fusevol.transport.pump`). Trio and what it imports are 7 MiB of private memory in each volume server,
so an empty module answers to that name while pyfuse3 is being imported, unless trio is there already.
"""

from __future__ import annotations

import sys
import types


def load() -> types.ModuleType:
    """The module ``pyfuse3``; trio is not imported by this."""
    borrowed = "trio" not in sys.modules
    if borrowed:
        sys.modules["trio"] = types.ModuleType("trio")
    try:
        import pyfuse3  # noqa: PLC0415  # here, between the two lines that make it cheap
    finally:
        if borrowed:
            del sys.modules["trio"]
    return pyfuse3
