#!/bin/sh
# Guess: `safetensors.numpy.save_file` writes the values of an array, whatever its memory order,
# as numpy.save does; or it refuses, as `safetensors.torch` refuses a tensor that is not
# contiguous.
# Found: an array in Fortran order, which is what `scipy.io.loadmat` returns for every cube, is
# written as it lies in memory under its C-order shape. The file loads without a word and holds
# the right numbers in the wrong places. `numpy.ascontiguousarray` before saving helps.
exec sh "$(dirname "$0")/alone.sh" numpy==2.4.6 safetensors==0.8.0 scipy==1.17.1 <<'PYTHON'
import numpy as np
import safetensors
import scipy
from safetensors.numpy import load_file, save_file
from scipy.io import loadmat, savemat

print("safetensors", safetensors.__version__, "numpy", np.__version__, "scipy", scipy.__version__)
cube = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
savemat("cube.mat", {"cube": cube})
loaded = loadmat("cube.mat")["cube"]
print("loadmat: the cube again", np.array_equal(loaded, cube), "Fortran order",
      loaded.flags.f_contiguous)
save_file({"as it is": loaded, "copied": np.ascontiguousarray(loaded)}, "cube.safetensors")
np.save("cube.npy", loaded)
read = load_file("cube.safetensors")
for name, array in (("safetensors, as it is", read["as it is"]),
                    ("safetensors, ascontiguousarray", read["copied"]),
                    ("numpy.save", np.load("cube.npy"))):
    print(f"{name:31} equal {np.array_equal(array, cube)}, first spectrum {array[0, 0].tolist()}")
assert np.array_equal(loaded, cube) and loaded.flags.f_contiguous
assert np.array_equal(read["copied"], cube) and np.array_equal(np.load("cube.npy"), cube)
scrambled = loaded.ravel(order="K").reshape(cube.shape)
assert np.array_equal(read["as it is"], scrambled), "Fortran order is saved in another way now"
PYTHON
