"""Secrets and ConfigMaps: what they hold, and what is refused without telling a secret."""

from __future__ import annotations

from typing import Any

import pytest

from fusevol import objects
from fusevol.errors import InvalidError
from tests.unit.objects.samples import CONFIG, SECRET, Obj, changed, refusal, update_refusal

HALF = "a" * (512 * 1024)
KEY_RULE = "a valid config key must consist of"


def test_string_data_is_merged_over_data() -> None:
    """What is given in the clear is stored as base64 with the rest, and wins."""
    secret = objects.admit(changed(SECRET, ("stringData/user", "root")))

    assert "stringData" not in secret
    assert secret["type"] == "Opaque"
    assert objects.payload.values(secret) == {"user": b"root", "password": b"s3cret"}


def test_values_of_a_config_map_are_text_and_bytes() -> None:
    """Both maps together are the values."""
    config = objects.admit(CONFIG)

    assert objects.payload.values(config) == {"mode": b"fast", "blob": b"\0\1"}
    assert objects.payload.count(config) == 2


@pytest.mark.parametrize(
    ("obj", "told"),
    [
        (changed(SECRET, ("data/user", "not base64!")), 'data[user]: Invalid value: "<not shown>": must be base64'),
        (changed(SECRET, ("data", {"a b": ""})), KEY_RULE),
        (changed(SECRET, ("data", {"..": ""})), "must not be '..'"),
        (changed(SECRET, ("data", {".": ""})), "must not be '.'"),
        (changed(CONFIG, ("data", {"": ""})), KEY_RULE),
        (changed(CONFIG, ("data", {"..data": ""})), "must not start with '..'"),
        (changed(CONFIG, ("binaryData", {"b": "not base64!"})), "binaryData[b]"),
        (changed(SECRET, ("stringData", {"a": HALF, "b": HALF})), "Too long: may not be more than 1048576 bytes"),
        (changed(CONFIG, ("data", {"k" * 254: ""})), KEY_RULE),
        (changed(CONFIG, ("data", {"blob": "x"})), "duplicate of key present in binaryData"),
        (changed(CONFIG, ("data", {"a": HALF, "b": HALF})), "data: Too long: may not be more than 1048576 bytes"),
        (changed(CONFIG, ("data", {"port": 8080})), "must be a string (put it in quotes)"),
    ],
)
def test_what_is_refused(obj: Obj, told: str) -> None:
    """Each mistake is named with its field."""
    assert told in refusal(obj)


@pytest.mark.parametrize("wrong", [{"password": "hunter2 !"}, {"password": {"hunter2": 1}}, {"password": 12345}])
@pytest.mark.parametrize("field", ["data", "stringData"])
def test_no_refusal_tells_a_secret(field: str, wrong: Any) -> None:
    """Errors go to terminals and logs."""
    obj = changed(SECRET, ("stringData", ...), (field, wrong))
    try:
        objects.admit(obj)
    except InvalidError as e:
        assert not any(word in str(e) for word in ("hunter2", "12345"))  # noqa: PT017 - some are admitted
    else:
        assert field == "stringData"


def test_an_immutable_one_stays_as_it_is() -> None:
    """Neither the data nor the word can be taken back."""
    frozen = ("immutable", True)

    assert update_refusal(changed(CONFIG, frozen), changed(CONFIG, frozen, ("data/mode", "slow")))
    assert update_refusal(changed(SECRET, frozen), SECRET)
    assert "field is immutable" in update_refusal(SECRET, changed(SECRET, ("type", "other")))
    objects.admit_update(objects.admit(CONFIG), changed(CONFIG, frozen, ("data/mode", "slow")))
