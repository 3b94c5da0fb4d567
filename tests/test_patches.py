"""Patches are the windows they should be, smaller copies scipy's, variants a mode's."""
from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from utility.datasets.augment import MODES, augment, dihedral
from utility.datasets.patches import bake, count_patches, extract_patches, zoomed

SQUARE = np.random.default_rng(0).random((3, 4, 4), dtype=np.float32)
OBLONG = np.random.default_rng(0).random((3, 4, 6), dtype=np.float32)


def cube(bands: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(bands).random((bands, height, width), dtype=np.float32)


def patches_of(scene: np.ndarray, patch: int, strides: list[int], zooms: list[float]) -> np.ndarray:
    return np.concatenate(list(extract_patches(scene, patch, strides, zooms)))


def eight(patch: np.ndarray) -> list[np.ndarray]:
    return [np.rot90(p, k, (1, 2)) for p in (patch, patch[:, ::-1]) for k in range(4)]


def drawn(patch: np.ndarray, mode: str, count: int = 400) -> Counter[bytes]:
    return Counter(augment(patch, mode, 1, 0, i).tobytes() for i in range(count))


def as_set(patches: list[np.ndarray]) -> set[bytes]:
    return {np.ascontiguousarray(p).tobytes() for p in patches}


@settings(max_examples=15, deadline=None)
@given(height=st.integers(8, 40), width=st.integers(8, 40), patch=st.integers(1, 8),
       stride=st.integers(1, 9))
def test_patches_are_every_window_at_the_stride_in_reading_order(height, width, patch, stride):
    scene = cube(2, height, width)
    rows, columns = (range(0, n - patch + 1, stride) for n in (height, width))
    expected = [scene[:, top:top + patch, left:left + patch] for top in rows for left in columns]
    got = patches_of(scene, patch, [stride], [1.0])
    assert np.array_equal(got, np.stack(expected))
    assert len(got) == count_patches((height, width), patch, [stride], [1.0])
    assert got.flags.c_contiguous


@pytest.mark.parametrize(("zoom", "size"), [(0.5, (64, 48)), (0.25, (61, 83)), (0.5, (128, 33))])
def test_a_smaller_copy_is_scipys_cubic_spline_zoom(zoom, size):
    scene = cube(3, *size)
    expected = scipy.ndimage.zoom(scene, (1, zoom, zoom), order=3)
    got = zoomed(scene, zoom)
    assert got.shape == expected.shape and got.dtype == np.float32
    # at some sizes scipy leaves the last row or column black; a copy has none
    dark = np.zeros_like(expected) == expected
    np.testing.assert_allclose(np.where(dark, expected, got), expected, atol=1e-5)
    assert got[:, -1].any() and got[..., -1].any()


def test_the_icvl_crop_gives_530_patches():
    assert count_patches((1024, 1024), 64, [64, 32, 32], [1.0, 0.5, 0.25]) == 256 + 225 + 49


def test_zooms_follow_one_another_each_with_its_own_stride():
    scene = cube(2, 64, 64)
    got = patches_of(scene, 16, [16, 8], [1.0, 0.5])
    assert np.array_equal(got[:16], patches_of(scene, 16, [16], [1.0]))
    assert np.array_equal(got[16:], patches_of(zoomed(scene, 0.5), 16, [8], [1.0]))


def test_a_copy_smaller_than_a_patch_gives_none():
    assert len(patches_of(cube(2, 40, 40), 32, [32, 32], [1.0, 0.5])) == 1


def test_baked_copies_are_the_patch_and_other_rotations_and_flips_of_it():
    patches = patches_of(cube(3, 16, 16), 8, [8], [1.0])
    baked = bake(patches, 5, seed=1, first=0).reshape(4, 5, 3, 8, 8)
    assert np.array_equal(baked[:, 0], patches)
    for patch, copies in zip(patches, baked, strict=True):
        assert len(as_set(copies) & as_set(eight(patch))) == 5


def test_baked_copies_do_not_depend_on_how_patches_are_batched():
    patches = patches_of(cube(3, 16, 32), 8, [8], [1.0])
    whole = bake(patches, 3, seed=1, first=10)
    halves = [bake(patches[:3], 3, seed=1, first=10), bake(patches[3:], 3, seed=1, first=13)]
    assert np.array_equal(whole, np.concatenate(halves))


# --- augmentation ---------------------------------------------------------------------------------

def test_none_leaves_the_patch_as_it_is():
    assert np.array_equal(augment(SQUARE, "none", 1, 2, 3), SQUARE)


def test_spatial_draws_the_eight_rotations_and_flips_about_equally_often():
    counts = drawn(SQUARE, "spatial")
    assert set(counts) == as_set(eight(SQUARE))
    assert min(counts.values()) > 25  # 50 each on average


def test_spectral_reverses_the_bands_half_of_the_time():
    counts = drawn(SQUARE, "spectral", 800)
    assert set(counts) == as_set(eight(SQUARE) + eight(SQUARE[::-1]))
    straight = as_set(eight(SQUARE))
    assert 330 < sum(n for variant, n in counts.items() if variant in straight) < 470


def test_reference_is_four_rotations_whose_flip_reverses_the_bands():
    turned = [np.rot90(p, k, (1, 2)) for p in (SQUARE, SQUARE[::-1]) for k in range(4)]
    assert set(drawn(SQUARE, "reference")) == as_set(turned)


def test_a_patch_that_is_not_square_keeps_its_shape():
    turned = [np.rot90(p, k, (1, 2)) for p in (OBLONG, OBLONG[:, ::-1]) for k in (0, 2)]
    assert set(drawn(OBLONG, "spatial")) == as_set(turned)
    for mode in MODES:
        assert all(augment(OBLONG, mode, 0, 0, i).shape == OBLONG.shape for i in range(20))


def test_the_same_key_gives_the_same_patch_and_each_part_of_it_matters():
    def sequence(seed: int, epoch: int, start: int) -> list[bytes]:
        return [augment(SQUARE, "spectral", seed, epoch, start + i).tobytes() for i in range(30)]

    assert sequence(1, 2, 3) == sequence(1, 2, 3)
    assert len({tuple(sequence(*key)) for key in [(1, 2, 3), (0, 2, 3), (1, 0, 3), (1, 2, 0)]}) == 4


def test_the_result_can_be_written_to_and_given_to_torch():
    patch = augment(SQUARE, "spatial", 0, 0, 1)
    assert patch.flags.c_contiguous and patch.dtype == np.float32


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="spatial"):
        augment(SQUARE, "flip", 0, 0, 0)


def test_dihedral_flips_and_then_turns():
    assert np.array_equal(dihedral(OBLONG, 1, True), np.rot90(OBLONG[:, ::-1], 1, (1, 2)))
