#!/bin/sh
# Guess: `skimage.transform.resize(labels, size, order=0)` is nearest neighbour, so it keeps
# labels.
# Found: the anti-aliasing filter is left out by default for integer labels alone. A ground-truth
# map that came as float64, as MATLAB files hold it, is blurred by a Gaussian first and comes
# back with classes between the classes. `anti_aliasing=False` helps.
exec sh "$(dirname "$0")/alone.sh" numpy==2.4.6 scikit-image==0.26.0 scipy==1.17.1 <<'PYTHON'
import numpy as np
import skimage
from scipy.io import loadmat, savemat
from skimage.transform import resize

print("scikit-image", skimage.__version__)
truth = np.kron(np.random.default_rng(0).integers(0, 10, (8, 8)), np.ones((10, 10), int))
savemat("truth.mat", {"truth": truth.astype("float64")})  # as MATLAB stores numbers
labels = loadmat("truth.mat")["truth"]
small = {
    "integers": resize(truth, (20, 20), order=0, preserve_range=True),
    "float64": resize(labels, (20, 20), order=0, preserve_range=True),
    "float64, anti_aliasing=False": resize(labels, (20, 20), order=0, preserve_range=True,
                                           anti_aliasing=False),
}
new = {name: np.mean(~np.isin(found, np.arange(10))) for name, found in small.items()}
for name, share in new.items():
    print(f"{name:29} {len(np.unique(small[name]))} labels, {share:.0%} of pixels are no class")
assert new["integers"] == 0 == new["float64, anti_aliasing=False"], "labels are lost elsewhere too"
assert new["float64"] > 0.2, "labels in float64 are kept now"
PYTHON
