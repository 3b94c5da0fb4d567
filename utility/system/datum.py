"""Caffe's `Datum` message: what the LMDBs published with this family of networks hold."""
from __future__ import annotations

import math
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=1)
def _message() -> type:
    """As protobuf reads it, which tensorboardX brings; imported for such a database alone."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="datum.proto", package="bi3dqrnn",
                                              syntax="proto2")
    datum = file.message_type.add(name="Datum")
    for number, name, kind in ((1, "channels", field.TYPE_INT32), (2, "height", field.TYPE_INT32),
                               (3, "width", field.TYPE_INT32), (4, "data", field.TYPE_BYTES),
                               (6, "float_data", field.TYPE_FLOAT),
                               (7, "encoded", field.TYPE_BOOL)):
        label = field.LABEL_REPEATED if name == "float_data" else field.LABEL_OPTIONAL
        datum.field.add(name=name, number=number, type=kind, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("bi3dqrnn.Datum"))


def decode_datum(record: bytes | memoryview) -> np.ndarray:
    """The patch in a serialized `Datum`: (channels, height, width) float32, a copy.

    `float_data` is taken as it is; `data` of one byte a value is divided by 255, of four bytes a
    value is little-endian float32.

    Raises ValueError: the record is not such a message, or its sizes disagree with its data.
    """
    from google.protobuf.message import DecodeError

    try:
        datum = _message().FromString(bytes(record))
    except DecodeError as error:
        raise ValueError(f"it is damaged: {error}") from error
    if datum.encoded:
        raise ValueError("it holds an encoded (compressed) image, which is not read here")
    shape = datum.channels, datum.height, datum.width
    size = "x".join(map(str, shape))
    if min(shape) < 1:
        raise ValueError(f"it gives the size {size}")
    if datum.float_data:
        values = np.array(datum.float_data, np.float32)
    elif len(datum.data) == 4 * math.prod(shape):
        values = np.frombuffer(datum.data, "<f4").astype(np.float32)
    else:
        values = np.frombuffer(datum.data, np.uint8) / np.float32(255)
    if len(values) != math.prod(shape):
        raise ValueError(f"it gives the size {size} and {len(values)} values")
    return values.reshape(shape)
