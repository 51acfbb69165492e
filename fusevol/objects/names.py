"""Kubernetes' rules for names, with a proposal for a name that breaks them.

Rules and messages: ``k8s.io/apimachinery/pkg/util/validation``.
"""

from __future__ import annotations

import re
import unicodedata

from fusevol.objects.fields import Field

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_QUALIFIED = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"

_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    f"an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{_LABEL}')"
)
_SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    f"end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
)
_QUALIFIED_TEXT = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character "
    f"(e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '{_QUALIFIED}')"
)
_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    f"'({_QUALIFIED})?')"
)

LABEL_LENGTH = 63
SUBDOMAIN_LENGTH = 253


def label(field: Field) -> None:
    """Report a value that is no DNS-1123 label (a name without dots, at most 63 characters)."""
    _check(field, _LABEL, _LABEL_TEXT, LABEL_LENGTH, dots=False)


def subdomain(field: Field) -> None:
    """Report a value that is no DNS-1123 subdomain (labels with dots between, at most 253 characters)."""
    _check(field, _SUBDOMAIN, _SUBDOMAIN_TEXT, SUBDOMAIN_LENGTH, dots=True)


def _check(field: Field, pattern: str, text: str, limit: int, *, dots: bool) -> None:
    name = field.text()
    if not name:
        return
    better = propose(name, dots=dots)
    hint = f'; try "{better}"' if better else ""
    if len(name.encode("utf-8", "surrogatepass")) > limit:
        field.invalid(f"must be no more than {limit} bytes{hint}")
    elif not re.fullmatch(pattern, name):
        field.invalid(f"{text}{hint}")


def propose(name: str, *, dots: bool) -> str:
    """A valid name near to *name*, with or without dots; empty if nothing is left of it."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    parts = plain.split(".") if dots else [plain.replace(".", "-")]
    kept = [re.sub("[^a-z0-9]+", "-", part).strip("-") for part in parts]
    limit = SUBDOMAIN_LENGTH if dots else LABEL_LENGTH
    return ".".join(part for part in kept if part)[:limit].strip("-.")


def qualified(name: str) -> list[str]:
    """What is wrong with *name* as the key of a label or an annotation (``prefix/name``)."""
    prefix, slash, base = name.rpartition("/")
    if "/" in prefix:
        return [
            (
                f"a qualified name {_QUALIFIED_TEXT} with an optional DNS subdomain prefix and '/' "
                "(e.g. 'example.com/MyName')"
            )
        ]
    wrong = []
    if slash and not prefix:
        wrong.append("prefix part must be non-empty")
    elif prefix and (len(prefix) > SUBDOMAIN_LENGTH or not re.fullmatch(_SUBDOMAIN, prefix)):
        wrong.append(f"prefix part {_SUBDOMAIN_TEXT}")
    if not base:
        wrong.append("name part must be non-empty")
    elif len(base) > LABEL_LENGTH:
        wrong.append(f"name part must be no more than {LABEL_LENGTH} bytes")
    if base and not re.fullmatch(_QUALIFIED, base):
        wrong.append(f"name part {_QUALIFIED_TEXT}")
    return wrong


def label_value(value: str) -> list[str]:
    """What is wrong with *value* as the value of a label."""
    if len(value) > LABEL_LENGTH:
        return [f"must be no more than {LABEL_LENGTH} bytes"]
    return [] if re.fullmatch(f"({_QUALIFIED})?", value) else [_VALUE_TEXT]
