"""Errors that a user can cause, or has to know of.

Two levels only: :class:`FusevolError` and its direct children. Every message is one whole sentence that says
what is wrong, where, and what to do. A child carries what the front doors need to report it: the exit code of
the command line, the HTTP status of the API and the ``reason`` of a Kubernetes ``Status`` object
(https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/).

Inside the filesystem (``fusevol.fs`` and below) errors are ``OSError`` with an errno, never these.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2


class FusevolError(Exception):
    """Root of all errors with a message for the user."""

    exit_code: ClassVar[int] = EXIT_FAILED
    http_status: ClassVar[int] = 500
    reason: ClassVar[str] = "InternalError"

    @property
    def message(self) -> str:
        """The sentence for the user."""
        return str(self)


class UsageError(FusevolError):
    """The command line or a request was not understood."""

    exit_code = EXIT_USAGE
    http_status = 400
    reason = "BadRequest"


class InvalidError(FusevolError):
    """An object, name or quantity breaks a rule."""

    http_status = 422
    reason = "Invalid"


class NotFoundError(FusevolError):
    """A named thing does not exist."""

    http_status = 404
    reason = "NotFound"


class AlreadyExistsError(FusevolError):
    """A thing of that name exists already."""

    http_status = 409
    reason = "AlreadyExists"


class ConflictError(FusevolError):
    """Somebody else changed the thing, or it is in use."""

    http_status = 409
    reason = "Conflict"


class ForbiddenError(FusevolError):
    """The request is understood and refused, whoever asks."""

    http_status = 403
    reason = "Forbidden"


class NoSpaceError(FusevolError):
    """A pool cannot hold what is asked of it."""

    http_status = 507
    reason = "InsufficientStorage"


class CorruptError(FusevolError):
    """State on disk cannot be read; nothing was changed."""

    reason = "Corrupt"


class UnavailableError(FusevolError):
    """A process, a pool or a mount that is needed does not answer."""

    http_status = 503
    reason = "ServiceUnavailable"


class TimeoutExpiredError(FusevolError):
    """Something that was waited for did not come in time."""

    http_status = 504
    reason = "Timeout"


def by_reason(reason: str) -> type[FusevolError]:
    """The class whose ``reason`` is *reason*; :class:`FusevolError` for one that is not known."""
    return next((c for c in FusevolError.__subclasses__() if c.reason == reason), FusevolError)
