"""Networks. `create_model` builds any of the family by name; nothing here knows about files or data."""
from __future__ import annotations

import difflib
import re
from typing import Any

from models.qrnn3d import QRNN3D, Execution, initialise_fast

__all__ = ["QRNN3D", "Execution", "create_model", "initialise_fast", "list_models"]

# family -> how its units pool; a name is <family>_<width>_<half-depth>
FAMILIES: dict[str, dict[str, Any]] = {
    "biqrnn": {"kind": "f", "bidirectional": True},
    "fqrnn": {"kind": "f", "bidirectional": False},
    "qrnn": {"kind": "fo", "bidirectional": False},
    "iqrnn": {"kind": "ifo", "bidirectional": False},
}
NAME = re.compile(rf"({'|'.join(FAMILIES)})_([1-9]\d{{0,3}})_([1-9]\d?)")


def list_models() -> list[str]:
    """The published networks; any other `<family>_<width>_<half-depth>` can be built too."""
    return [f"{family}_16_5" for family in FAMILIES]


def create_model(name: str, **options: Any) -> QRNN3D:
    """Build a network by name, e.g. `biqrnn_16_5` or `qrnn_32_3`.

    Args:
        name: `<family>_<width>_<half-depth>`; families biqrnn, fqrnn, qrnn, iqrnn.
        options: further arguments of `QRNN3D` (`long_skip`), or fields of `Execution` (`pooling`, ...).

    Raises:
        ValueError: an unknown name (the message lists the nearest known ones) or option.
    """
    found = NAME.fullmatch(name)
    if not found:
        near = difflib.get_close_matches(name, list_models(), n=3, cutoff=0.3) or list_models()
        raise ValueError(f"unknown network {name!r}; did you mean {' or '.join(near)}? "
                         "Names are <family>_<width>_<half-depth>, families " + ", ".join(FAMILIES) + ".")
    family, width, half_depth = found.groups()
    execution = {k: options.pop(k) for k in list(options) if k in Execution.__dataclass_fields__}
    if unknown := set(options) - {"long_skip"}:
        raise ValueError(f"unknown option {', '.join(sorted(unknown))} for network {name!r}; there are long_skip, "
                         + ", ".join(Execution.__dataclass_fields__))
    net = QRNN3D(int(width), int(half_depth), **FAMILIES[family], **options)
    return net.set_execution(**execution)
