"""The networks by name. A network registers itself: nothing else lists architectures.

    @register("vdsr")
    class VDSR(Network): ...

A family registers a function of its name's parts, for names of a pattern:

    @register("edsr_64_16", pattern=r"edsr_(?P<width>\\d+)_(?P<blocks>\\d+)", form="edsr_<w>_<n>")
    def edsr(width: str, blocks: str) -> Network: ...
"""
from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from models.network import Execution, Network

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Entry:
    """One registered architecture; see `register`."""

    build: Callable[..., Network]
    names: tuple[str, ...]
    pattern: re.Pattern[str]
    form: str
    recognise: Callable[[Shapes], Sequence[str]]

    @property
    def options(self) -> list[str]:
        """Arguments that the name does not give."""
        return [name for name in inspect.signature(self.build).parameters
                if name not in self.pattern.groupindex]


_entries: dict[str, Entry] = {}  # by form


def register(*names: str, pattern: str | None = None, form: str | None = None,
             recognise: Callable[[Shapes], Sequence[str]] | None = None) -> Callable[[Any], Any]:
    """Make a network known by its name: a `Network` class, or a function that returns one.

    Args:
        names: the published networks, which `list_models` gives.
        pattern: of all names that can be built. Its named groups are the first arguments, as text.
            Default: `names` alone.
        form: how such a name is written, for messages and help.
        recognise: names that weights of such shapes may belong to ({parameter: shape} -> names).
            Default: `names`.
    """
    def add(build: Any) -> Any:
        written = form or ", ".join(names)
        _entries[written] = Entry(build, names,
                                  re.compile(pattern or "|".join(map(re.escape, names))), written,
                                  recognise or (lambda shapes: names))
        return build
    return add


def list_models() -> list[str]:
    """The published networks; `name_forms` says which others can be built."""
    return [name for entry in _entries.values() for name in entry.names]


def name_forms() -> str:
    """How the names of networks are written, in one line."""
    return "; ".join(entry.form for entry in _entries.values())


def create_model(name: str, **options: Any) -> Network:
    """Build a network by name, e.g. `biqrnn_16_5`, `qrnn_32_3` or `vdsr`.

    Args:
        name: a published name (`list_models`) or another of a registered form (`name_forms`).
        options: options of the network (`long_skip` of the alternating ones), or fields of
            `Execution` (`pooling`, ...).

    Raises ValueError: an unknown name (the message lists the nearest known ones) or option.
    """
    entry, parts = next(((e, found.groupdict()) for e in _entries.values()
                         if (found := e.pattern.fullmatch(name))), (None, {}))
    if entry is None:
        near = difflib.get_close_matches(name, list_models(), n=3, cutoff=0.3) or list_models()
        raise ValueError(f"unknown network {name!r}; did you mean {' or '.join(near)}? Names are "
                         f"{name_forms()}.")
    execution = {k: options.pop(k) for k in list(options) if k in Execution.__dataclass_fields__}
    if unknown := set(options) - set(entry.options):
        known = [*entry.options, *Execution.__dataclass_fields__]
        raise ValueError(f"unknown option {', '.join(sorted(unknown))} for network {name!r}; there "
                         f"are {', '.join(known)}")
    net = entry.build(**parts, **options)
    net.name = name
    return net.set_execution(**execution)


def matching_models(shapes: Shapes) -> list[str]:
    """Names of the networks whose weights have these names and shapes."""
    found = []
    for name in (name for entry in _entries.values() for name in entry.recognise(shapes)):
        with torch.device("meta"):
            net = create_model(name)
        if {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()} == dict(shapes):
            found.append(name)
    return found
