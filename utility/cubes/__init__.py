"""Hyperspectral cubes and the files that hold them, from the ground up.

`cube`: a cube in memory or on disk, `statistics` of its values. `companions`, `layouts`, `values`,
`bands`: what a cube means. `matlab`, `hdf5`, `numpy_files`, `envi`, `rasters`: one reader beside
one writer. `containers`: the table of all these. `utility.scenes` is built on top.
"""
