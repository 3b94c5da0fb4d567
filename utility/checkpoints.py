"""Checkpoints: one file that `torch.load(weights_only=True)` reads, with all that a run needs.

    net         state dict under the published names (a `module.` or `_orig_mod.` prefix is taken
                off when it is read)
    optimizer   state dict
    epoch       passes over the data finished
    iteration   optimizer steps made
    psnr, loss  of the last validation (dB, training loss function)
    arch, the network's options (`long_skip`), scale (a list where there are several), degradation,
    bands, normalisation, recipe, seed, version, config
                what was trained and how; the rest is the state of a run, see `training`

The first six are the released format, which loads too: its network is then known by the shapes of
its weights.
"""
from __future__ import annotations

import hashlib
import io
import json
import os
import reprlib
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from models import Network, create_model, matching_models
from utility.system.environment import project_version
from utility.system.errors import UserError
from utility.system.files import replacing, require_file

# numpy's plain numbers, which released checkpoints hold as their psnr and loss; they run no code.
_NUMBERS = [*((np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar")
              for core in ("core", "_core")), np.dtype, type(np.dtype(np.float64)),
            type(np.dtype(np.float32)), type(np.dtype(np.int64))]
SAFETENSORS = ".safetensors"
_PREFIXES = ("module.", "_orig_mod.")
PLACES = ("params_ema", "params", "state_dict", "model_state_dict", "model")
"""Where BasicSR, Lightning and others keep a network's weights; KAIR and
`torch.save(net.state_dict())` keep nothing else."""


@dataclass(frozen=True)
class CheckpointInfo:
    """The facts of a checkpoint about its network; None for a missing fact
    (the released format)."""

    path: Path
    arch: str
    options: dict[str, Any]  # of the network, which its weights do not tell
    unsaid: str | None       # a sentence where neither the file nor the caller says such an option
    scales: tuple[int, ...] | None
    degradation: str | None
    bands: int | None        # of the training data; the network takes any number
    epoch: int | None
    iteration: int | None
    psnr: float | None       # dB, of its validation
    # what the network adds its residual to, see `degradation.start_image`
    start: str = "interpolation"
    noise: float = 0.0       # of the low-resolution cubes that it was trained on
    # the scenes, as `lmdb_dataset` records them; None: not said
    trained_on: tuple[dict[str, Any], ...] | None = ()


def save_checkpoint(path: str | Path, contents: Mapping[str, Any], keep: bool = False) -> None:
    """Write a checkpoint whole or not at all; a file of that name is replaced. Raises UserError if
    it cannot be written.

    Args:
        keep: keep the file that is replaced, under the name `previous`.
    """
    buffer = io.BytesIO()  # torch's own writer of files does not say that a disk is full
    torch.save({**contents, "version": project_version()}, buffer)
    path = Path(path)
    if keep and path.exists():
        # a file system without hard links keeps none
        with suppress(OSError), replacing(previous(path)) as link:
            os.link(path, link)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def previous(path: Path) -> Path:
    """Where `save_checkpoint` keeps the checkpoint that it replaces."""
    return path.with_name(f"{path.stem}.prev{path.suffix}")


def _damage(path: Path) -> str | None:
    """A sentence on a wrong checksum in a file that torch wrote; torch does not check them."""
    if not zipfile.is_zipfile(path):
        return None  # the old format has none
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            return "its records are compressed"
        bad = archive.testzip()
    return f"the checksum of its record {bad} is wrong" if bad else None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(
            value, list | tuple) else ():
        yield from _tensors(part)


def _dense(tensor: Tensor) -> bool:
    """Whether each value of a tensor is stored; a small file may claim a sparse, expanded or empty
    one of any size."""
    return tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized) \
        and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _number(value: Any) -> bool:
    return isinstance(value, int | float | np.floating) and not isinstance(value, bool)


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("epoch", "iteration", "step", "batch", "seed"), (_whole, "a whole number")),
    **dict.fromkeys(("psnr", "loss", "best_psnr", "noise"), (_number, "a number")),
    **dict.fromkeys(("arch", "degradation", "recipe", "start", "version", "normalisation"),
                    (lambda value: isinstance(value, str), "a text")),
    **dict.fromkeys(("optimizer", "scheduler", "scaler", "config"),
                    (lambda value: isinstance(value, Mapping), "a table")),
    "long_skip": (lambda value: isinstance(value, bool), "true or false"),
    **dict.fromkeys(("scale", "bands"),
                    (lambda value: all(map(_whole,
                                           value if isinstance(value, list | tuple) else [value])),
                     "whole numbers")),
    "history": (lambda value: isinstance(value, list)
                and all(isinstance(row, Mapping) for row in value), "a list of tables"),
    "tally": (lambda value: isinstance(value, Tensor) and value.shape == (2,), "two numbers")}
"""Of a checkpoint's fields: whether a value can be used, and what is expected; None may stand for
any of them."""


def load_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this project or of the released code; prefixes in `net` are taken off.
    Raises UserError: `path` is missing, a folder, not a checkpoint, truncated, holds Python code,
    or has no weights."""
    path = Path(path)
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("[!.]*.pth"))
        raise UserError(f"{path} is a folder, not a checkpoint; give a file"
                        + (f" in it: {', '.join(inside[:6])}." if inside
                           else " such as runs/NAME/best.pth."))
    if not path.exists():
        raise UserError(
            f"There is no checkpoint {path}; check the path, or train one with hsi_sr.py.")
    require_file(path)
    if path.suffix == SAFETENSORS:
        return _load_safetensors(path)
    kept = f"; the one before it is {previous(path)}" if previous(path).exists() else ""
    try:
        if damage := _damage(path):
            raise UserError(f"{path} is damaged: {damage}; copy it again{kept}.")
        with torch.serialization.safe_globals(_NUMBERS), warnings.catch_warnings(action="ignore"):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except UserError:
        raise
    except Exception as error:  # torch.load raises whatever its parser stumbled over
        if "add_safe_globals" in str(error):
            raise UserError(f"{path} holds Python objects beside its weights, and loading those "
                            "could run any code, so it is refused; save it again as a dict of "
                            "tensors and plain numbers.") from error
        raise UserError(f"{path} cannot be read as a checkpoint ({type(error).__name__}): it is "
                        "truncated or another kind of file; copy it again, or give a .pth file of "
                        f"hsi_sr.py{kept}.") from error
    return _checked(checkpoint, path)


def _checked(checkpoint: Any, path: Path) -> dict[str, Any]:
    """The checkpoint, if its fields can be used."""
    checkpoint = _under_net(checkpoint)
    net = checkpoint.get("net") if isinstance(checkpoint, dict) else None
    if (not isinstance(net, Mapping) or not net
            or not all(isinstance(v, Tensor) for v in net.values())):
        found = f"a {type(checkpoint).__name__}"
        if isinstance(checkpoint, dict):
            found = f"a dict with {', '.join(map(str, list(checkpoint)[:6])) or 'nothing'}"
        raise UserError(f"{path} is not a checkpoint of this network family: it holds {found}, and "
                        "the weights were expected in a dict under 'net'.")
    if not all(isinstance(name, str) for name in net):
        raise UserError(f"{path} is not a checkpoint: its weights have no names.")
    if not all(map(_dense, _tensors(checkpoint))):
        raise UserError(
            f"{path} holds tensors whose values are not stored one by one; save dense tensors.")
    for name, (fits, expected) in _FIELDS.items():
        if checkpoint.get(name) is not None and not fits(checkpoint[name]):
            raise UserError(f"{path} says {reprlib.repr(checkpoint[name])} as its {name}, where "
                            f"{expected} was expected; take another checkpoint.")
    own = {_without_prefix(name): tensor for name, tensor in net.items()}
    return {**checkpoint, "net": own if checkpoint.get("arch") else _unwrapped(own) or own}


def _under_net(checkpoint: Any) -> Any:
    """A checkpoint whose weights stand where other programs keep them (see `PLACES`), or are all of
    it, with these under `net`."""
    def weights(value: Any) -> bool:
        return (isinstance(value, Mapping) and bool(value)
                and all(isinstance(v, Tensor) for v in value.values()))

    if not isinstance(checkpoint, dict) or "net" in checkpoint:
        return checkpoint
    if weights(checkpoint):
        known = _unwrapped({str(name): tensor for name, tensor in checkpoint.items()})
        return {"net": checkpoint} if known else checkpoint
    place = next((name for name in PLACES if weights(checkpoint.get(name))), None)
    if place is None:
        return checkpoint
    # What else these programs keep under names of ours is of another kind.
    return ({"net": checkpoint[place]}
            | {name: value
               for name, value in checkpoint.items()
               if name in ("arch", "scale", "epoch") and _FIELDS[name][0](value)})


def _unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The weights of a known network by its own names: without prefixes, nor the name under which a
    larger module held it; None where none is known."""
    weights = {_without_prefix(name): tensor for name, tensor in weights.items()}
    modules = dict.fromkeys(f"{name.partition('.')[0]}." for name in weights if "." in name)
    for module in ("", *modules):
        inside = {_without_prefix(name.removeprefix(module)): tensor
                  for name, tensor in weights.items() if name.startswith(module)}
        if matching_models(_shapes(inside)):
            return inside
    return None


def export(source: str | Path, target: str | Path) -> None:
    """Write the weights of a checkpoint as safetensors, its facts as JSON texts in the metadata.
    Raises UserError: `source` cannot be read, or `target` exists, has another suffix or cannot be
    written."""
    if Path(target).suffix != SAFETENSORS:
        raise UserError(f"{target} has another suffix than {SAFETENSORS}; write NAME{SAFETENSORS}.")
    saved = load_checkpoint(source)
    weights = {name: tensor.cpu().contiguous() for name, tensor in saved["net"].items()}
    lists = ("scale", "bands", "trained_on")
    plain = {}
    for name, value in saved.items():
        single = name in _FIELDS and isinstance(value, str | int | float | np.generic)
        if name in lists or single:
            plain[name] = value.item() if isinstance(value, np.generic) else value
    described = describe_checkpoint(saved, source)
    facts = {**plain, "arch": described.arch, **described.options}
    metadata = {name: json.dumps(value) for name, value in facts.items()}
    metadata["sha256"] = checksum(weights, metadata)
    with replacing(target, overwrite=False) as temporary:
        temporary.write_bytes(save(weights, metadata))


def _load_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            facts = dict(file.metadata() or {})
        found = facts.pop("sha256", None)
        said = {name: json.loads(value)
                for name, value in facts.items() if name in _FIELDS or name == "trained_on"}
        if (said or found) and found != checksum(weights, facts):
            raise ValueError("its checksum is wrong")
    except Exception as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); copy it "
                        "again.") from error
    return _checked({**said, "net": weights}, path)


def checksum(weights: Mapping[str, Tensor], facts: Mapping[str, str] | None = None) -> str:
    """SHA-256 of names, types, shapes and values in any order, and of the facts beside them."""
    digest = hashlib.sha256(repr(sorted(facts.items())).encode() if facts else b"")
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_weights(net: nn.Module, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Copy the weights of a loaded checkpoint into `net`. Raises UserError: names or shapes differ
    (the network the file holds is named if it is known), or a weight is NaN or infinite."""
    _check_shapes(net, checkpoint, path)
    weights = checkpoint["net"]
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path} is of no use: its weight {name} holds NaN or infinity; take "
                            "an earlier checkpoint.")
    net.load_state_dict(weights)


def _check_shapes(net: nn.Module, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    weights, expected = checkpoint["net"], net.state_dict()
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in expected.items()}:
        held = checkpoint.get("arch") or next(iter(matching_models(_shapes(weights))), None)
        if held:
            raise UserError(f"{path} holds the weights of {held}, and another network was asked "
                            f"for; give -a {held}.")
        wrong = (sorted(set(weights) ^ set(expected))
                 or [k for k in weights if weights[k].shape != expected[k].shape])
        raise UserError(f"{path} holds the weights of another network ({len(wrong)} of them differ "
                        f"by name or shape, the first is {wrong[0]}); give the network it was "
                        "trained as with -a.")


def describe_checkpoint(checkpoint: Mapping[str, Any], path: str | Path, arch: str | None = None,
                        options: Mapping[str, Any] | None = None) -> CheckpointInfo:
    """Describe a loaded checkpoint. Its network is the named one, else the one that fits the shapes
    of the weights.

    Args:
        arch: the network asked for, which must then be the one it holds.
        options: of the network, for a checkpoint that does not say them (`long_skip` of a released
            one).

    Raises UserError: it holds another network than `arch`, or none that is known, or says other
    `options`.
    """
    found = checkpoint.get("arch")
    candidates = [found] if found else matching_models(_shapes(checkpoint["net"]))
    if arch is not None:
        if candidates and arch not in candidates:
            raise UserError(f"{path} holds {' or '.join(candidates)}, and -a asked for {arch}; "
                            "leave -a out to take the checkpoint's network.")
        found = arch
    elif not found:
        if len(candidates) != 1:
            raise UserError(f"{path} does not say which network it holds, and the shapes of its "
                            f"weights fit {' and '.join(candidates) or 'none that is known'}; name "
                            "the network with -a.")
        found = candidates[0]
    with torch.device("meta"):
        net = build_network(found)
    asked = {name: value for name, value in (options or {}).items() if name in net.options}
    said = {name: checkpoint[name] for name in net.options if checkpoint.get(name) is not None}
    for name in asked.keys() & said.keys():
        if asked[name] != said[name]:
            raise UserError(f"{path} holds a network trained with {name} = {said[name]}, and "
                            f"{asked[name]} was asked for; leave the choice to the checkpoint.")
    chosen = {**net.options, **asked, **said}
    missing = [name for name in net.options if name not in {**asked, **said}]
    unsaid = [f"{path} does not say {name}, and {chosen[name]} is taken; {net.option_notes[name]}"
              for name in missing]
    with torch.device("meta"):  # before any memory is taken
        _check_shapes(build_network(found, **chosen), checkpoint, path)
    scale, psnr = checkpoint.get("scale"), checkpoint.get("psnr")
    return CheckpointInfo(path=Path(path), arch=found, options=chosen,
                          unsaid=next(iter(unsaid), None),
                          scales=None if scale is None else tuple(scale)
                          if isinstance(scale, list | tuple) else (int(scale),),
                          degradation=checkpoint.get("degradation"), bands=checkpoint.get("bands"),
                          epoch=checkpoint.get("epoch"), iteration=checkpoint.get("iteration"),
                          psnr=None if psnr is None else float(psnr),
                          start=checkpoint.get("start") or "interpolation",
                          noise=float(checkpoint.get("noise") or 0),
                          trained_on=None if checkpoint.get("trained_on") is None
                          else tuple(checkpoint["trained_on"]))


def model_from_checkpoint(path: str | Path, arch: str | None = None,
                          options: Mapping[str, Any] | None = None,
                          **execution: Any) -> tuple[Network, CheckpointInfo]:
    """The network of a checkpoint with its weights, on the CPU and in eval mode.

    Args:
        arch: required only where the file does not say and its shapes do not tell.
        options: as in `describe_checkpoint`.
        execution: fields of `models.Execution`.

    Raises UserError: as `load_checkpoint`, `describe_checkpoint` and `load_weights`.
    """
    checkpoint = load_checkpoint(path)
    info = describe_checkpoint(checkpoint, path, arch, options)
    net = build_network(info.arch, **info.options, **execution)
    load_weights(net, checkpoint, path)
    return net.eval(), info


def build_network(arch: str, **options: Any) -> Network:
    """`models.create_model`; an unknown name or option raises UserError."""
    try:
        return create_model(arch, **options)
    except ValueError as error:
        message = str(error).rstrip(".")
        raise UserError(f"{message[0].upper()}{message[1:]}.") from error


def check_problem(net: Network, scale: int, kind: str) -> None:
    """`Network.check_problem`; a scale factor or degradation that the network cannot do raises
    UserError."""
    try:
        net.check_problem(scale, kind)
    except ValueError as error:
        raise UserError(f"{error}.") from error


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _without_prefix(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name
