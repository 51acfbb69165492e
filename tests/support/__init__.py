"""What tests share: bounded waiting, the log check, loop devices and volume servers that clean up after themselves."""

from __future__ import annotations

from tests.support.polling import eventually

__all__ = ["eventually"]
