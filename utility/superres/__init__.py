"""A low-resolution cube made finer: the problem, the tiles, the written cube, its place and its
report."""
