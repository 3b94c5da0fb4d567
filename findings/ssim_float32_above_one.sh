#!/bin/sh
# Guess: `structural_similarity` of a float32 cube and of the same values in float64 agree to 1e-5.
# Found: scikit-image computes float32 images in float32, and its variances are differences of
# large squares. Of a thermal band at 300 K with 1 K of contrast single pixels are wrong; with a
# quarter of a kelvin the mean is; with a tenth it is -32 in place of .64, and pixels are far
# above 1. Reflectance in [0, 1] shows nothing of it.
exec sh "$(dirname "$0")/alone.sh" numpy==2.4.6 scikit-image==0.26.0 <<'PYTHON'
import numpy as np
import skimage
from skimage.metrics import structural_similarity

print("scikit-image", skimage.__version__)
rng = np.random.default_rng(0)
detail = rng.random((64, 64))
noisy = detail + 0.3 * rng.standard_normal(detail.shape)
found = {}
for low, span in ((0, 1), (300, 1), (300, 0.25), (300, 0.1)):
    one, other = ((low + span * image).astype("float32") for image in (detail, noisy))
    double = structural_similarity(one.astype("f8"), other.astype("f8"), data_range=span)
    single, pixels = structural_similarity(one, other, data_range=span, full=True)
    found[low, span] = abs(single - double), pixels.max()
    print(f"{low} .. {low + span}: float64 {double:.4f}, float32 {single:.4f}, "
          f"largest pixel in float32 {pixels.max():.2f}")
assert found[0, 1][0] < 1e-5, "reflectance shows it too"
assert found[300, 0.1][0] > 1, "float32 is enough now"
assert found[300, 0.1][1] > 10, "no pixel is above 1 now"
PYTHON
