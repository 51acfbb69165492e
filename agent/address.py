"""The TCP address that metrics are served at."""

from __future__ import annotations

import contextlib
import ipaddress
from typing import NamedTuple, Self

from fusevol.errors import UsageError


class Address(NamedTuple):
    """A TCP address."""

    host: str
    """An IP address."""
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, given: object, over: str | None = None) -> Self | None:
        """The part ``metrics`` of the configuration, and what goes over it; None: there is none.

        Raises :class:`UsageError`.
        """
        if over:
            given = {"listen": over}
        if given is None:
            return None
        if not isinstance(given, dict) or set(given) != {"listen"}:
            raise UsageError("In the configuration, metrics must be a mapping such as `listen: 127.0.0.1:9805`.")
        host, colon, port = str(given["listen"]).rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        with contextlib.suppress(ValueError):
            version = ipaddress.ip_address(bare).version
            number = int(port) if port.isascii() and port.isdigit() else 0
            if colon and 0 < number < 65536 and (version == 4) == (bare == host):
                return cls(bare, number)
        raise UsageError(
            f'The address of the metrics is "{given["listen"]}": give an IP address and a port, such as '
            "127.0.0.1:9805 or [::1]:9805."
        )
