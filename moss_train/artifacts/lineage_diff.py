"""What differs between two records, key by key."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from moss_train.artifacts.lineage import Record
from moss_train.artifacts.lineage_graph import short_name
from moss_train.artifacts.lineage_verify import short

SECTIONS = ("kind", "stage", "config", "data", "parents", "metrics", "counts", "details", "licences", "code", "environment", "files")
_MISSING = "-"
_HASH = re.compile(r"[0-9a-f]{32,64}")


@dataclass(frozen=True)
class Difference:
    """One key that differs.

    Attributes:
        section: One of `SECTIONS`. key: Within it. left, right: Its values; None where it has none.
    """

    section: str
    key: str
    left: Any
    right: Any

    @staticmethod
    def spell(value: Any) -> str:
        """A value as text."""
        if isinstance(value, float):
            return f"{value:.6g}"
        text = _MISSING if value is None else str(value)
        return text[:12] if _HASH.fullmatch(text) else text


def differences(left: Record, right: Record) -> list[Difference]:
    """Everything in which two records differ but what differs always: ids, times, and hashes of records."""
    found = []
    one, other = _sections(left), _sections(right)
    for section in SECTIONS:
        keys = [*one[section], *(key for key in other[section] if key not in one[section])]
        for key in keys:
            values = one[section].get(key), other[section].get(key)
            if values[0] != values[1]:
                found.append(Difference(section, key, *values))
    return found


def _sections(record: Record) -> dict[str, dict[str, Any]]:
    lineage = record.lineage
    counts = {name: getattr(lineage, name) for name in ("tokens_seen", "supervised_tokens", "flops", "flops_formula", "number_format")}
    return {
        "kind": {"kind": lineage.kind},
        "stage": {"stage": lineage.stage},
        "config": _flat(lineage.config),
        "data": {
            f"{source.role} {source.name}": f"{source.records:,} records, {source.licence or 'licence unknown'}, {source.sha256[:12]}"
            for source in lineage.data
        },
        "parents": _numbered([(parent.role, f"{short_name(parent.name)} {short(parent.id)}") for parent in lineage.parents]),
        "metrics": dict(lineage.metrics),
        "counts": counts,
        "details": _flat(lineage.details),
        "licences": {licence: ", ".join(names) for licence, names in lineage.licences.items()},
        "code": dict(record.code),
        "environment": dict(record.environment),
        "files": {name: f"{entry.bytes:,} bytes, {entry.sha256[:12]}" for name, entry in record.files.items()},
    }


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) and item else {f"{prefix}{key}": item}
    return found


def _numbered(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """A role that stands more than once is numbered."""
    found: dict[str, str] = {}
    for role, text in pairs:
        number = sum(name == role or name.startswith(f"{role} ") for name in found)
        found[f"{role} {number + 1}" if number else role] = text
    return found


def as_json(found: list[Difference]) -> list[dict[str, Any]]:
    """For programs."""
    return [asdict(one) for one in found]
