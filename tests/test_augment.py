"""The augmentation draws the variants it names, by (seed, epoch, index) and nothing else."""
from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from utility.augment import MODES, augment, dihedral

SQUARE = np.random.default_rng(0).random((3, 4, 4), dtype=np.float32)
OBLONG = np.random.default_rng(0).random((3, 4, 6), dtype=np.float32)


def eight(patch: np.ndarray) -> list[np.ndarray]:
    return [np.rot90(p, k, (1, 2)) for p in (patch, patch[:, ::-1]) for k in range(4)]


def drawn(patch: np.ndarray, mode: str, count: int = 400) -> Counter[bytes]:
    return Counter(augment(patch, mode, 1, 0, i).tobytes() for i in range(count))


def as_set(patches: list[np.ndarray]) -> set[bytes]:
    return {np.ascontiguousarray(p).tobytes() for p in patches}


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
