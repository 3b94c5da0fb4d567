"""Patches are the windows they should be, and the smaller copies are scipy's."""
from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from utility.patches import bake, count_patches, extract_patches, zoomed


def cube(bands: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(bands).random((bands, height, width), dtype=np.float32)


def patches_of(scene: np.ndarray, patch: int, strides: list[int], zooms: list[float]) -> np.ndarray:
    return np.concatenate(list(extract_patches(scene, patch, strides, zooms)))


@settings(max_examples=15, deadline=None)
@given(height=st.integers(8, 40), width=st.integers(8, 40), patch=st.integers(1, 8), stride=st.integers(1, 9))
def test_patches_are_every_window_at_the_stride_in_reading_order(height, width, patch, stride):
    scene = cube(2, height, width)
    expected = [
        scene[:, top : top + patch, left : left + patch]
        for top in range(0, height - patch + 1, stride)
        for left in range(0, width - patch + 1, stride)
    ]
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
    dark = np.zeros_like(expected) == expected  # at some sizes scipy leaves the last row or column black; a copy has none
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
        variants = {np.rot90(p, k, (1, 2)).tobytes() for p in (patch, patch[:, ::-1]) for k in range(4)}
        assert len({copy.tobytes() for copy in copies} & variants) == 5


def test_baked_copies_do_not_depend_on_how_patches_are_batched():
    patches = patches_of(cube(3, 16, 32), 8, [8], [1.0])
    whole = bake(patches, 3, seed=1, first=10)
    halves = [bake(patches[:3], 3, seed=1, first=10), bake(patches[3:], 3, seed=1, first=13)]
    assert np.array_equal(whole, np.concatenate(halves))
