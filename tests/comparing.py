"""Whether two runs are the same: checkpoints to the last bit, events as TensorBoard shows."""
from __future__ import annotations

import struct
from pathlib import Path

import torch
from tensorboardX.proto.event_pb2 import Event


def same(a, b) -> bool:
    """Whether two checkpoints are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def events(run: str | Path) -> list[Event]:
    """TensorBoard's events: records of a length (8 bytes), its checksum (4), the event, its
    checksum (4).

    As TensorBoard shows them: those that a resumed run replaces are left out.
    """
    found = []
    for path in sorted(Path(run).glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12:12 + length])
            if event.HasField("session_log"):
                found = [earlier for earlier in found if earlier.step < event.step]
            found.append(event)
            data = data[16 + length:]
    return found
