"""Claims that are made for a Pod and end with it: ``ephemeral.volumeClaimTemplate`` (volume-semantics 1.7). Pure."""

from __future__ import annotations

import copy
from typing import Any

from agent.volumes.wanted import uid_of
from fusevol.errors import ConflictError

Obj = dict[str, Any]


def claim_name(pod: Obj, volume: str) -> str:
    """The name of the claim of a Pod's volume."""
    return f"{pod['metadata']['name']}-{volume}"


def claim_for(pod: Obj, volume: Obj) -> Obj:
    """The claim that is made for *volume*, an entry of ``spec.volumes``."""
    template = volume["ephemeral"]["volumeClaimTemplate"]
    metadata = template.get("metadata") or {}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            **{word: copy.deepcopy(metadata[word]) for word in ("labels", "annotations") if metadata.get(word)},
            "name": claim_name(pod, str(volume["name"])),
            "namespace": pod["metadata"]["namespace"],
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": pod["metadata"]["name"],
                    "uid": uid_of(pod),
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": copy.deepcopy(template["spec"]),
    }


def owner_of(claim: Obj) -> str:
    """Uid of the Pod that the claim was made for; empty for a claim of its own."""
    for ref in claim["metadata"].get("ownerReferences") or []:
        if ref.get("controller") and ref.get("kind") == "Pod":
            return str(ref.get("uid") or "")
    return ""


def check_owner(pod: Obj, claim: Obj | None) -> None:
    """Raise :class:`ConflictError` for a claim of the right name that somebody else has made: it is never taken."""
    if claim is not None and owner_of(claim) != uid_of(pod):
        metadata = pod["metadata"]
        raise ConflictError(
            f"PVC {metadata['namespace']}/{claim['metadata']['name']} was not created for pod "
            f"{metadata['namespace']}/{metadata['name']} (pod is not owner)"
        )
