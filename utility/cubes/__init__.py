"""Hyperspectral cubes and the files that hold them, from the ground up.

`cube`: a cube in memory or on disk, and what its file says. `axes`, `values`, `bands`, `fills`:
what a cube means. `companions`, `conventions`, `fields`: what files say beside it, in arrays,
attributes and text. `ground`, `ortho`: where it lies. `virtual`: cubes that are unpacked or put
together as they are read. `formats/`: containers, one reader beside one writer. `products/`: what
agencies deliver. `containers`: the table of all these. `utility.scenes` is built on top.
"""
