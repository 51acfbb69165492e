"""Lists in pages that hold while things come and go: a token names the last one of its page. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from typing import TypeVar

from agent.csi.refusal import Code, Refused, invalid
from agent.csi.volumes import Handle

T = TypeVar("T")


def page(
    found: Iterable[tuple[Handle, T]], most: int, token: str, pools: Sequence[str]
) -> tuple[list[tuple[Handle, T]], str]:
    """At most *most* (0: all) of *found* behind *token*, and the token of the next page; empty if there is none.

    Raises INVALID_ARGUMENT for a negative number, ABORTED for a token that was never given out.
    """
    if most < 0:
        raise invalid("max_entries is negative.")
    after = _read(token, pools)
    left = sorted((one for one in found if after is None or one[0] > after), key=lambda one: one[0])
    shown = left[: most or len(left)]
    return shown, _token(shown[-1][0]) if len(shown) < len(left) else ""


def _token(handle: Handle) -> str:
    return base64.urlsafe_b64encode(f"v1:{handle}".encode()).decode()


def _read(token: str, pools: Sequence[str]) -> Handle | None:
    """None for the first page."""
    if not token:
        return None
    try:
        text = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    handle = Handle.parse(text.removeprefix("v1:")) if text.startswith("v1:") else None
    if handle is None or handle.pool not in pools:
        raise Refused(Code.ABORTED, "starting_token is none that was given out: begin the list anew.")
    return handle
