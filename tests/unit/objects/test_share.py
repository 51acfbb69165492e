"""What a StorageClass of ceph.com/cephfs says."""

from __future__ import annotations

import pytest

from fusevol.errors import InvalidError
from fusevol.objects.share import Share, is_share
from tests.support import seed

SEED = seed.one("cephfs-class")["parameters"]


def test_seed() -> None:
    """A class of 2019 is understood as it stands."""
    found = Share.of_class("cephfs", SEED)

    assert found.monitors == ("210.28.132.168:6789", "210.28.132.169:6789", "210.28.132.170:6789")
    assert (found.user, found.namespace, found.secret) == ("admin", "cephfs", "ceph-secret-admin")
    assert found.path_of("pvc-1") == "/dlkit-volumes/fusevol/volumes/pvc-1/data"


def test_defaults_and_case() -> None:
    """What is not given is what the provisioner of that name takes; names of parameters may be in any case."""
    found = Share.of_class("c", {"MONITORS": "[::1]:3300, mon.example", "adminsecretname": "s"})

    assert found.monitors == ("[::1]:3300", "mon.example")
    assert (found.user, found.namespace, found.root, found.cluster) == (
        "admin",
        "default",
        "/volumes/kubernetes",
        "ceph",
    )


def test_one_place_is_one_pool() -> None:
    """Classes that differ in the order of monitors or in slashes have one pool, others have their own."""
    monitors = ",".join(reversed(SEED["monitors"].split(",")))
    one = Share.of_class("a", SEED).pool
    same = Share.of_class("b", SEED | {"monitors": monitors, "claimRoot": "//dlkit-volumes/"}).pool
    others = {Share.of_class("c", SEED | {k: v}).pool for k, v in (("adminId", "x"), ("claimRoot", "/x"))}

    assert same == one
    assert len({one, *others}) == 3


def test_dump() -> None:
    """It can be read from what it was written to."""
    found = Share.of_class("cephfs", SEED)

    assert Share.load(found.dump()) == found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"monitors": ""}, "monitors"),
        ({"monitors": "--help"}, "--help"),
        ({"monitors": "a b:1"}, "a b"),
        ({"adminSecretName": ""}, "adminSecretName"),
        ({"adminId": "-k/etc/shadow"}, "adminId"),
        ({"cluster": "../x"}, "cluster"),
        ({"claimRoot": "relative"}, "claimRoot"),
        ({"claimRoot": "/a/../../b"}, "claimRoot"),
        ({"deterministicNames": "perhaps"}, "deterministicNames"),
    ],
)
def test_refused(change: dict[str, str], said: str) -> None:
    """What names no cluster, or could be an option or a path elsewhere, is refused by the parameter's name."""
    with pytest.raises(InvalidError) as refused:
        Share.of_class("cephfs", SEED | change)

    assert said in refused.value.message
    assert 'StorageClass "cephfs"' in refused.value.message


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"monitors": 1}', '{"monitors": ["a"], "user": 3}', "[" * 100_000])
def test_damaged(text: str) -> None:
    """An annotation that somebody has changed is refused in a sentence."""
    with pytest.raises(InvalidError):
        Share.load(text)


def test_which_classes() -> None:
    """A class is one of CephFS by its provisioner or by its monitors, unless it names a pool of this node."""
    assert is_share("ceph.com/cephfs", SEED)
    assert is_share("ceph.com/cephfs", {})
    assert is_share("fusevol.io/fusevol", SEED)
    assert not is_share("ceph.com/cephfs", {"pool": "default"})
    assert not is_share("fusevol.io/fusevol", {})
