"""Whether a run that goes on is measured as it was before: on the same databases, at the same
problem."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEASURED = ("scales", "degradation", "noise", "unknown", "snr", "val_batches")
"""Fields of a configuration on which the figures of a validation depend, beside its databases."""


def other_data(given: Mapping[str, Mapping[str, Any]], trained: Any) -> str | None:
    """A sentence on databases that are not those of a checkpoint; None where they are.

    Args:
        given: path -> fingerprint (see `LMDBDataset.fingerprint`), in the order of the run.
        trained: the fingerprints that the checkpoint records; None, or anything else than tables,
            where it records none.
    """
    if not isinstance(trained, list) or not all(isinstance(old, Mapping) for old in trained):
        return None
    before, now = ([found.get("sha256") for found in both] for both in (trained, given.values()))
    found = []
    for number, (path, new) in enumerate(given.items()):
        if new["sha256"] in before:
            continue
        old = trained[number] if number < len(trained) and before[number] not in now else {}
        found.append(f"the database {path} is not the one this run was trained on: "
                     f"{_difference(old, new)}")
    if not found and set(before) != set(now):
        found.append(f"this run was trained on {len(before)} databases, of which {len(now)} "
                     f"{'is' if len(now) == 1 else 'are'} given")
    return "; ".join(found) or None


def other_problem(config: Mapping[str, Any], before: Mapping[str, Any]) -> str | None:
    """A sentence on the fields of `MEASURED` that are others than `before`, the configuration of a
    checkpoint, says; None where none is."""
    words = []
    for name in MEASURED:
        if name in before and (new := _in_words(config[name])) != (old := _in_words(before[name])):
            words.append(f"{name} {new} instead of {old}")
    return f"this run goes on with {' and '.join(words)}" if words else None


def _in_words(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if not old:
        return "it is another one"
    if _size(old) == _size(new):
        return "as many patches, with other values"
    return f"it holds {_size(new)}, and that one held {_size(old)}"


def _size(found: Mapping[str, Any]) -> str:
    shape = found.get("shape") or ["?"]
    return (f"{found.get('patches')} patches of {'x'.join(map(str, shape))}, "
            f"{found.get('validation')} of them for validation")
