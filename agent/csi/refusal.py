"""gRPC status codes, and which one an error becomes (the CSI specification's error scheme)."""

from __future__ import annotations

import enum

from fusevol import errors
from fusevol.errors import FusevolError


class Code(enum.IntEnum):
    """The codes of gRPC that this driver answers with, by their numbers on the wire."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    INTERNAL = 13
    UNAVAILABLE = 14


class Refused(Exception):  # noqa: N818 - a refusal is an answer, not an error of ours
    """A call is answered with a code and a sentence."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


_CODES: dict[type[FusevolError], Code] = {
    errors.UsageError: Code.INVALID_ARGUMENT,
    errors.InvalidError: Code.INVALID_ARGUMENT,
    errors.NotFoundError: Code.NOT_FOUND,
    errors.AlreadyExistsError: Code.ALREADY_EXISTS,
    errors.ConflictError: Code.FAILED_PRECONDITION,
    errors.ForbiddenError: Code.PERMISSION_DENIED,
    errors.NoSpaceError: Code.RESOURCE_EXHAUSTED,
    errors.CorruptError: Code.INTERNAL,
    errors.UnavailableError: Code.UNAVAILABLE,
    errors.TimeoutExpiredError: Code.UNAVAILABLE,  # what was given up may come about yet: it is to be asked again
}


def code_of(error: FusevolError) -> Code:
    """The code for an error of the agent's other rooms."""
    return next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), Code.INTERNAL)


def invalid(message: str) -> Refused:
    """A field is missing, malformed or not supported."""
    return Refused(Code.INVALID_ARGUMENT, message)
