"""Caffe's `Datum` message, by hand: what the LMDBs published with this family of networks hold.

Fields (protobuf wire format): 1 channels, 2 height, 3 width (varint), 4 data (bytes), 5 label (varint, ignored),
6 float_data (repeated float, packed or not), 7 encoded (bool).
"""
from __future__ import annotations

import numpy as np

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FLOAT_TAG = 6 << 3 | _FIXED32  # of one unpacked value of float_data


def decode_datum(record: bytes | memoryview) -> np.ndarray:
    """The patch in a serialized `Datum`: (channels, height, width) float32, a copy.

    `float_data` is taken as it is; `data` of one byte a value is divided by 255, of four bytes a value is little-endian
    float32.

    Raises:
        ValueError: the record is not such a message, or its sizes disagree with its data.
    """
    buffer = memoryview(record).cast("B")
    size = {1: 0, 2: 0, 3: 0}
    data: memoryview | None = None
    floats: list[np.ndarray] = []
    at = 0
    while at < len(buffer):
        tag, after = _varint(buffer, at)
        field, wire = tag >> 3, tag & 7
        if tag == _FLOAT_TAG:
            values, at = _unpacked_run(buffer, at)
            floats.append(values)
        elif wire == _VARINT:
            value, at = _varint(buffer, after)
            if field in size:
                size[field] = value
            elif field == 7 and value:
                raise ValueError("it holds an encoded (compressed) image, which is not read here")
        elif wire in (_BYTES, _FIXED32, _FIXED64):
            length, start = _varint(buffer, after) if wire == _BYTES else (4 if wire == _FIXED32 else 8, after)
            at = start + length
            if at > len(buffer):
                raise ValueError(f"field {field} runs past the end of the record")
            if field == 4 and wire == _BYTES:
                data = buffer[start:at]
            elif field == 6 and wire == _BYTES:
                if length % 4:
                    raise ValueError("float_data is not a whole number of values")
                floats.append(np.frombuffer(buffer[start:at], "<f4"))
        else:
            raise ValueError(f"wire type {wire} in field {field} is not one of protobuf's")
    shape = size[1], size[2], size[3]
    expected = shape[0] * shape[1] * shape[2]
    if expected == 0:
        raise ValueError(f"it gives the size {shape[0]}x{shape[1]}x{shape[2]}")
    if floats:
        values = np.concatenate(floats)
    elif data is not None and len(data) == 4 * expected:
        values = np.frombuffer(data, "<f4")
    else:
        values = np.frombuffer(data or b"", np.uint8) / np.float32(255)
    if len(values) != expected:
        raise ValueError(f"it gives the size {shape[0]}x{shape[1]}x{shape[2]} and {len(values)} values")
    return values.astype(np.float32).reshape(shape)


def _varint(buffer: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(buffer) and shift < 64:
        byte = buffer[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("it ends in the middle of a number")


def _unpacked_run(buffer: memoryview, at: int) -> tuple[np.ndarray, int]:
    """Values of float_data stored one by one (a tag byte and 4 bytes each), and where their run ends."""
    count = (len(buffer) - at) // 5
    rows = np.frombuffer(buffer[at : at + 5 * count], np.uint8).reshape(count, 5)
    other = rows[:, 0] != _FLOAT_TAG
    run = int(other.argmax()) if other.any() else count
    if run == 0:
        raise ValueError("field 6 runs past the end of the record")
    return np.ascontiguousarray(rows[:run, 1:]).view("<f4").ravel(), at + 5 * run
