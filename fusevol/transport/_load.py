"""Imports pyfuse3 without what it does not need here.

pyfuse3 imports trio, and reaches it only through its module attribute ``trio``, which is replaced before use
(:mod:`fusevol.transport.pump`). Trio and what it imports are 7 MiB of private memory in a volume server that is started
by itself. It imports ``importlib.metadata`` to learn its own version, which nobody asks for here: that brings the
standard library's email, zip and random modules, and a reseeding at every fork. Modules without content answer to
both names while pyfuse3 is being imported, unless the real ones are there already.
"""

from __future__ import annotations

import sys
import types


def load() -> types.ModuleType:
    """The module ``pyfuse3``; the modules named above are not imported by this."""
    metadata = types.ModuleType("importlib.metadata")
    metadata.__dict__.update(version=lambda _name: "unknown", PackageNotFoundError=ImportError)
    borrowed = {m.__name__: m for m in (types.ModuleType("trio"), metadata) if m.__name__ not in sys.modules}
    sys.modules.update(borrowed)
    try:
        import pyfuse3  # noqa: PLC0415  # here, between the lines that make it cheap
    finally:
        for name in borrowed:
            del sys.modules[name]
    return pyfuse3
