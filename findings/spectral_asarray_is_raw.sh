#!/bin/sh
# Guess: in Spectral Python `image.asarray()` gives the values of `image.load()`.
# Found: with a `reflectance scale factor` in the header, load() gives float32 divided by the
# factor, reading pixels, bands and slices gives float64 divided by it, and asarray() and
# open_memmap() give the stored integers: the same cube in three types and two units. asarray()
# is read-only as well.
exec sh "$(dirname "$0")/alone.sh" numpy==2.4.6 spectral==0.25 <<'PYTHON'
import numpy as np
import spectral

print("spectral", spectral.__version__, "numpy", np.__version__)
counts = np.random.default_rng(0).integers(1, 10001, (6, 7, 9)).astype("u2")
spectral.envi.save_image("cube.hdr", counts, metadata={"reflectance scale factor": "10000"})
image = spectral.open_image("cube.hdr")
found = {
    "load()": np.asarray(image.load()), "image[:, :, :]": image[:, :, :],
    "read_band(0)": image.read_band(0)[..., None], "asarray()": image.asarray(),
    "open_memmap()": np.asarray(image.open_memmap()),
}
for name, array in found.items():
    print(f"{name:15} {array.dtype.name:8} first value {array[0, 0, 0]}, stored {counts[0, 0, 0]}")
types = [array.dtype.name for array in found.values()]
assert types == ["float32", "float64", "float64", "uint16", "uint16"], "the types have changed"
assert all(np.allclose(array[..., 0] * (10000 if array.dtype.kind == "f" else 1), counts[..., 0])
           for array in found.values()), "the units have changed"
PYTHON
