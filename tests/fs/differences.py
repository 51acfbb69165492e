"""What a mount cannot do that a bare directory can, by transport: cases of the table, each with the reason.

docs/transports.md says the same to users; a test keeps the two equal.
"""

from __future__ import annotations

from typing import Final

_FALLOCATE: Final = (
    "libfuse's bindings have no fallocate: it is EOPNOTSUPP, and posix_fallocate(3) writes zeros instead"
)
_LSEEK: Final = "SEEK_HOLE and SEEK_DATA see no holes: the whole file is data"
_TMPFILE: Final = "O_TMPFILE is EOPNOTSUPP"
_IDMAP: Final = "idmapped mounts are refused (EINVAL)"
_COLLAPSE: Final = "the kernel refuses FALLOC_FL_COLLAPSE_RANGE and FALLOC_FL_INSERT_RANGE on FUSE (EOPNOTSUPP)"

DIFFERENCES: Final[dict[str, dict[str, str]]] = {
    "kernel": {
        "fallocate_collapses_and_inserts": _COLLAPSE,
    },
    "pyfuse3": {
        "fallocate_lengthens": _FALLOCATE,
        "fallocate_keeps_the_size": _FALLOCATE,
        "fallocate_punches_holes": _FALLOCATE,
        "fallocate_zeroes_ranges": _FALLOCATE,
        "fallocate_collapses_and_inserts": _FALLOCATE,
        "allocation_by_others_clears_set_id_bits": _FALLOCATE,
        "holes_and_data_are_found": _LSEEK,
        "unnamed_files_can_be_linked": _TMPFILE,
        "unnamed_files_that_stay_so": _TMPFILE,
        "time_of_birth_stays": "statx(2) has no time of birth",
        "default_acl_takes_the_place_of_the_umask": (
            "the umask is applied even where a default ACL should take its place"
        ),
        "acl_by_a_stranger_to_the_group_clears_setgid": (
            "an ACL set by somebody outside the file's group does not clear its setgid bit"
        ),
        "idmapped_mounts": _IDMAP,
        "unnamed_files_on_idmapped_mounts": _IDMAP,
    },
}
