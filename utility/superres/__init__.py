"""A low-resolution cube made finer: problem, tiles, the written cube, its place, its report."""
