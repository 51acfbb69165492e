"""What is asked of the kernel in INIT: a table, each feature with what is lost without it."""

from __future__ import annotations

from typing import Final, NamedTuple

from fusevol.transport.kernel.protocol import MINOR


class Feature(NamedTuple):
    """A flag of INIT."""

    name: str
    bit: int
    """Its number in ``flags | flags2 << 32``."""
    kernel: str
    """The first Linux that offers it; empty for all that this transport runs on."""
    without: str
    """What is given up without it."""


TABLE: Final = (
    Feature("async-read", 0, "", "one read at a time per file"),
    Feature("atomic-o-trunc", 3, "", "O_TRUNC is a request of its own"),
    Feature("big-writes", 5, "", "writes of a page at most"),
    Feature("dont-mask", 6, "", "the umask is applied where a default ACL should take its place"),
    Feature("auto-inval-data", 12, "", "pages that another writer changed may stay cached"),
    Feature("readdirplus", 13, "", "a request per name after a listing"),
    Feature("readdirplus-auto", 14, "", "attributes with every listing"),
    Feature("async-dio", 15, "", "direct I/O one request at a time"),
    Feature("parallel-dirops", 18, "", "one lookup at a time per directory"),
    Feature("posix-acl", 20, "", "no ACLs"),
    Feature("max-pages", 22, "", "requests of 128 KiB at most"),
    Feature("cache-symlinks", 23, "", "a request per use of a symbolic link"),
    Feature("explicit-inval-data", 25, "", "cached pages are dropped when the time of change is read anew"),
    Feature("handle-killpriv-v2", 28, "5.11", "a request before every write, to ask for security.capability"),
    Feature("setxattr-ext", 29, "5.13", "setting an ACL does not clear setgid"),
    Feature("init-ext", 30, "5.17", "none of the features below"),
    Feature("passthrough", 37, "6.9", "all file data goes through the volume server"),
    Feature("has-resend", 39, "6.9", "a request in flight is lost with its server"),
    Feature("allow-idmap", 40, "6.12", "no idmapped mounts: pods in user namespaces cannot use the volume"),
    Feature("over-io-uring", 41, "6.14", "requests come over /dev/fuse"),
    Feature("request-timeout", 42, "6.15", "`abort_after_s` is kept by volume server and agent alone"),
)

_BITS: Final = {feature.name: 1 << feature.bit for feature in TABLE}


class Agreement(NamedTuple):
    """What server and kernel agreed on."""

    minor: int
    flags: int

    def has(self, name: str) -> bool:
        """Whether the feature *name* is in use."""
        return bool(self.flags & _BITS[name])

    def without(self, name: str) -> Agreement:
        """The same, but for the feature *name*."""
        return Agreement(self.minor, self.flags & ~_BITS[name])

    def names(self) -> list[str]:
        """The features in use, in the order of the table."""
        return [feature.name for feature in TABLE if self.has(feature.name)]


def agree(minor: int, offered: int, unwanted: frozenset[str]) -> Agreement:
    """What to answer a kernel of protocol 7.*minor* that offers the flags *offered*."""
    flags = offered & sum(bit for name, bit in _BITS.items() if name not in unwanted)
    if not flags & _BITS["init-ext"]:
        flags &= 0xFFFFFFFF
    return Agreement(min(minor, MINOR), flags)
