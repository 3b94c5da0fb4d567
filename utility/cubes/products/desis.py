"""DESIS (DLR), L1B to L2A."""
from utility.cubes.products._dlr import dlr_product

PRODUCT = dlr_product("DESIS", "DESIS")
