"""Products as agencies and laboratories deliver them; a new product is one new file here.

A file whose name begins with no underscore sets PRODUCT, a `utility.cubes.product.Product`. It says
how the product is known, which arrays or files make the cube,
and what these do not say themselves: scale, no-data, order, place. Whatever they do say by the
usual conventions is found in `conventions`, `ground` and the readers under `formats`, and needs no
word here.
"""
from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import h5py

from utility.cubes.product import Product

_NAMES = sorted(module.name for module in iter_modules(__path__) if module.name[0] != "_")
PRODUCTS: tuple[Product, ...] = tuple(
    import_module(f"{__name__}.{name}").PRODUCT for name in _NAMES)
"""All products, by the names of their files."""


def product_of(path: Path) -> tuple[Product, Path] | None:
    """The product that a path is a scene of, and the path of that scene; None for others."""
    with suppress(OSError):
        found = [(product, scene) for product in PRODUCTS if (scene := product.scene(path))]
        if found:
            return found[0] if len(found) == 1 else None
        if path.is_file() and h5py.is_hdf5(path):
            # A damaged file is refused by its reader, which says why.
            odd = RuntimeError, KeyError, ValueError, TypeError
            with suppress(*odd), h5py.File(path, "r") as file:
                return next(((product, path) for product in PRODUCTS if product.holds(file)), None)
    return None


def belongs(path: Path) -> bool:
    """Whether a file is about a scene of a product beside it: a mask, a quick look, a band."""
    return any(product.belongs(path) for product in PRODUCTS)
