"""Products of DLR, a folder a scene: one SPECTRAL_IMAGE (GeoTIFF, JPEG 2000 or ENVI), beside it
quick looks, masks, and an XML about the bands."""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from utility.cubes.cube import Stored
from utility.cubes.fields import merged
from utility.cubes.formats import envi, rasters
from utility.cubes.formats.band_xml import facts_in_xml
from utility.cubes.product import Product

NODATA = -32768.0
"""Of reflectance, which JPEG 2000 has no room to declare."""


def dlr_product(title: str, start: str) -> Product:
    """The product whose files begin with `start`."""
    image = re.compile(rf"(?P<stem>{start}.+)-SPECTRAL_IMAGE(_VNIR|_SWIR)?"
                       r"\.(tiff?|jp2|bsq|bil|bip)", re.I)
    described = re.compile(rf"(?P<stem>{start}.+)-METADATA\.xml", re.I)

    def images_in(folder: Path) -> list[Path]:
        return sorted(path for path in folder.iterdir() if image.fullmatch(path.name))

    def scene(path: Path) -> Path | None:
        if path.is_dir() or described.fullmatch(path.name):
            stem = described.fullmatch(path.name)["stem"] if path.is_file() else ""
            images = [other for other in images_in(path if path.is_dir() else path.parent)
                      if other.name.startswith(stem)]
            return images[0] if len(images) == 1 else None
        if path.suffix.lower() == ".hdr" and "-SPECTRAL_IMAGE" in path.name.upper():
            return next((other for other in images_in(path.parent) if other.stem == path.stem),
                        None)
        return path if image.fullmatch(path.name) else None

    def files(path: Path) -> list[Path]:
        stem = image.fullmatch(path.name)["stem"]
        return [other for other in path.parent.iterdir() if other.name.startswith(stem)]

    def belongs(path: Path) -> bool:
        if not path.name.upper().startswith(start) or image.fullmatch(path.name):
            return False
        return any(path in files(other) for other in images_in(path.parent))

    def read(path: Path, key: str | None) -> Stored:
        stored = (rasters.open_raster if rasters.is_raster(path) else envi.open_envi)(path, key)
        if stored.nodata is None and stored.array.dtype == np.int16:
            stored.nodata = NODATA
        about = next((other for other in files(path) if described.fullmatch(other.name)), None)
        if about is None:
            if stored.wavelengths is None:
                stem = image.fullmatch(path.name)["stem"]
                stored.notes.append(f"{stem}-METADATA.XML is not beside it, "
                                    "so wavelengths and gain are not known")
            return stored
        bands = stored.array.shape[stored.layout.index("B")]
        facts, notes = facts_in_xml(about, bands)
        own = {"gain": stored.gain, "offset": stored.offset}
        for name, value in merged(own, facts).items():
            setattr(stored, name, value)
        stored.notes += notes
        return stored

    return Product(title, read, scene=scene, files=files, belongs=belongs)
