"""The bands of a scene: chosen, dropped, found bad, filled."""
from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import scipy.ndimage

from utility.cubes.cube import PER_BAND, LazyCube, Scene, blocks, native, scratch, slowest_of
from utility.cubes.fills import likely_fill
from utility.cubes.values import BandStatistics, band_statistics, marker_of
from utility.system.errors import UserError

MARKED = "marked as bad in the file"
"""The reason of a band that the file's own list calls bad."""


@dataclass(frozen=True)
class BadBand:
    """A band that needs a repair before use."""
    index: int
    reason: str
    pixels: int = 0          # invalid ones
    fillable: bool = False   # other pixels of the band are valid


def find_bad_bands(cube: Any, nodata: float | None = None, missing: np.ndarray | None = None,
                   statistics: BandStatistics | None = None) -> list[BadBand]:
    """Bands with NaN, infinite or no-data pixels, constant ones and dead ones; indices from 0.

    `missing` (H, W) is True for pixels that count as no-data whatever their value; `statistics` are
    those of the cube, for a caller that has them.
    """
    found = []
    statistics = statistics or band_statistics(cube, nodata, missing)
    value = "" if nodata is None else f" ({nodata:g})"
    pixels = cube.shape[1] * cube.shape[2]
    for band, (low, high) in enumerate(zip(statistics.low, statistics.high, strict=True)):
        not_finite, gone = int(statistics.not_finite[band]), int(statistics.missing[band])
        bad = not_finite + gone
        if bad == pixels:
            found.append(BadBand(band, "dead (no valid pixel)", bad))
        elif low == high:
            found.append(BadBand(band, f"constant ({low:g})", bad))
        elif bad:
            reasons = [f"{n} {what} pixel{'s' * (n != 1)}" for n, what in
                       ((not_finite, "NaN or infinite"), (gone, f"no-data{value}")) if n]
            found.append(BadBand(band, " and ".join(reasons), bad, fillable=True))
    return found


def parse_bands(text: str | Sequence[int], count: int) -> list[int]:
    """Band indices, counted from 0, from text such as "0-49,60"; ends included, sorted, each once.
    Raises UserError: the text is no such list, or names a band outside 0 .. count - 1."""
    if isinstance(text, str):
        chosen: set[int] = set()
        for part in filter(None, (p.strip() for p in text.split(","))):
            first, dash, last = part.partition("-")
            try:
                ends = int(first), int(last if dash else first)
            except ValueError:
                raise UserError(f"'{text}' is no list of bands; write indices and ranges counted "
                                "from 0, such as 0-49,60.") from None
            if ends[0] > ends[1]:
                raise UserError(f"The bands '{part}' run backwards; write {ends[1]}-{ends[0]}.")
            chosen.update(range(ends[0], min(ends[1], count) + 1))
    else:
        chosen = set(map(int, text))
    outside = [b for b in chosen if not 0 <= b < count]
    if outside or not chosen:
        found = (f"'{text}' names band {max(outside, key=abs)}" if outside
                 else f"'{text}' names no band")
        raise UserError(f"{found}, and the scene has bands 0 to {count - 1}.")
    return sorted(chosen)


def select_bands(scene: Scene, bands: Sequence[int]) -> Scene:
    """The scene of some of its bands (indices from 0), with what it has for each of them."""
    bands, count = list(bands), scene.cube.shape[0]
    if bands == list(range(count)):
        return scene
    whole = scene.cube
    if bands == list(range(bands[0], bands[-1] + 1)) and isinstance(whole, np.ndarray):
        cube = whole[bands[0]:bands[-1] + 1]
    elif type(whole) is np.ndarray:
        cube = whole[bands]
    else:
        def read(b: slice, r: slice, c: slice) -> np.ndarray:
            wanted = bands[b]
            return whole[wanted[0]:wanted[-1] + 1, r, c][[i - wanted[0] for i in wanted]]

        cube = LazyCube((len(bands), *whole.shape[1:]), whole.dtype, read, slowest_of(whole),
                        getattr(whole, "grain", 1))
    metadata = _per_band(scene.metadata, bands, count)
    source = metadata.get("source_bands", range(count))
    metadata["source_bands"] = [source[b] for b in bands]
    facts = {}
    for name in PER_BAND:
        values = getattr(scene, name)
        if isinstance(values, list):
            values = [values[b] for b in bands]
        elif values is not None:
            values = np.asarray(values)[bands]
        facts[name] = values
    return dataclasses.replace(scene, cube=cube, metadata=metadata, **facts)


NOT_PER_BAND = {"map info", "projection info", "coordinate system string", "geo points",
                "pixel size", "class names", "class lookup", "default bands", "source_bands",
                "bad_bands"}


def _per_band(metadata: dict[str, Any], bands: list[int], count: int) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name, value in metadata.items():
        if isinstance(value, dict):
            value = _per_band(value, bands, count)
        elif name == "default bands":  # numbers from 1, meant for display
            try:
                value = [str(bands.index(int(b) - 1) + 1) for b in value]
            except (ValueError, TypeError):
                continue
        elif isinstance(value, list) and len(value) == count and name not in NOT_PER_BAND:
            value = [value[b] for b in bands]
        chosen[name] = value
    return chosen


def clean(scene: Scene, drop_bad_bands: bool = False, fill_nodata: bool = False,
          bands: str | Sequence[int] | None = None, drop: str | Sequence[int] | None = None, *,
          keep_bad: bool = False) -> Scene:
    """The scene with the chosen bands, none of them bad, ready for a network.

    A band is bad that is constant, dead or marked as bad in the file (ENVI's ``bbl``,
    ``good_wavelengths``), or has invalid pixels: NaN, infinite or no-data. Bands that the file
    itself declares bad, by its marks or by no-data in all pixels, are left out with a note; other
    bad bands need a word of the user. Pixels are missing that are invalid in every band that
    has valid pixels, such as those outside a flight line, or that a mask of the file declares so.
    They make no band bad: they get the values of their nearest valid pixel, so that a network can
    be given the cube, are remembered as `Facts.missing`, and are no-data again in results.
    `Facts.filled` has these and all other pixels of which a value was made up: no number is to be
    computed from them. A scene without a no-data value gets one, NaN or the lowest of its type.

    Args:
        scene: in memory or on disk. A cube on disk is read once, and stays on disk unless pixels
            are filled.
        drop_bad_bands: leave out constant, dead and other bad bands that are not filled.
        fill_nodata: other invalid pixels get the value of the nearest valid one of their band.
        bands, drop: bands to take or to leave out first, "0-49,60" or indices from 0.
        keep_bad: keep bad bands, filled where they can be;
            ``metadata["bad_bands"]`` holds their indices, and ``metadata["bad_pixels"]`` {index:
            (H, W), True for invalid pixels} of those that were filled.

    Raises UserError: a band is bad, not declared so, and not dropped, filled or kept (the message
    names it), or fewer than 2 bands remain.
    """
    count = scene.cube.shape[0]
    wanted = parse_bands(bands, count) if bands is not None else list(range(count))
    if drop is not None:
        wanted = [b for b in wanted if b not in set(parse_bands(drop, count))]
    if len(wanted) < 2:
        raise UserError(f"{scene} would have {len(wanted)} of its {count} bands left, and at least "
                        "2 are needed; choose others.")
    scene = select_bands(scene, wanted)
    statistics = band_statistics(scene.cube, scene.nodata, scene.missing)
    if scene.nodata is None and (fill := likely_fill(scene.cube, statistics)):
        scene = dataclasses.replace(scene, metadata={**scene.metadata, "likely_fill": fill})
    bad = find_bad_bands(scene.cube, scene.nodata, scene.missing, statistics)
    marked = set(marked_bad(scene))
    if not bad and not marked:
        scene.counted = scene.cube, statistics
        return scene
    partial = [b for b in bad if b.fillable]
    missing = missing_pixels(scene, bad) if partial else None
    gone = 0 if missing is None else int(missing.sum())
    refused = [b for b in bad if b.index not in marked
               and (not b.fillable or (b.pixels > gone and not fill_nodata))]
    refused += [BadBand(i, MARKED) for i in marked]
    refused.sort(key=lambda b: b.index)
    kept = sorted(set(range(len(wanted))) - {b.index for b in refused})
    carry = keep_bad and not drop_bad_bands
    empty = statistics.missing.copy()
    if scene.nodata is not None and np.isnan(scene.nodata):
        empty += statistics.not_finite
    pixels = scene.cube.shape[1] * scene.cube.shape[2]
    found = [b for b in refused if b.index not in marked and empty[b.index] < pixels]
    if (found and not (drop_bad_bands or carry)) or (refused and len(kept) < 2):
        raise _refusal(scene, found or refused, len(kept))
    if carry and refused:
        scene = dataclasses.replace(
            scene, metadata={**scene.metadata, "bad_bands": [b.index for b in refused]})
    else:
        words = in_words(refused, scene.metadata.get("source_bands", range(count)))
        scene = select_bands(scene, kept)
        if refused and not found:
            note = (f"{len(refused)} of its bands (counted from 0) "
                    f"{'is' if len(refused) == 1 else 'are'} left out: {words}")
            scene = dataclasses.replace(scene, notes=[*scene.notes, note])
    return _filled(scene, missing) if partial and (gone or fill_nodata or carry) else scene


def _refusal(scene: Scene, bad: list[BadBand], left: int) -> UserError:
    """The refusal of a scene for some of its bands, where `left` others remain."""
    flags = ["--drop-bad-bands to leave these bands out"] if left >= 2 else []
    if any(b.fillable for b in bad):
        flags.append("--fill-nodata to fill single pixels from their neighbours")
    advice = (f"give {' or '.join(flags)}" if flags
              else "the others are too few to work on; use another scene")
    named = in_words(bad, scene.metadata.get("source_bands", range(len(scene.cube))))
    return UserError(f"{scene} has {len(bad)} bad band{'s' * (len(bad) != 1)} (counted from 0): "
                     f"{named}; {advice}.")


def marked_bad(scene: Scene, known: Collection[int] = ()) -> list[int]:
    """The bands that the file itself marks as bad, but for the known ones; indices from 0."""
    bad = [] if scene.good is None else np.flatnonzero(~np.asarray(scene.good, bool))
    return [int(band) for band in bad if band not in known]


def missing_pixels(scene: Scene, bad: Sequence[BadBand]) -> np.ndarray:
    """(H, W), True where a pixel is invalid in every band that has valid pixels."""
    everywhere, dead = np.ones(scene.cube.shape[1:], bool), {b.index for b in bad if not b.fillable}
    marker = marker_of(scene.cube.dtype, scene.nodata)
    for index in blocks(scene.cube):
        block = scene.cube[index]
        living = [
            i for i, b in enumerate(range(*index[0].indices(len(scene.cube)))) if b not in dead]
        everywhere[index[1:]] &= _invalid(block[living], marker).all(axis=0)
    return everywhere if scene.missing is None else everywhere | scene.missing


def missing_anywhere(scene: Scene) -> np.ndarray | None:
    """(H, W), True where the file declares a pixel of one band at least missing; None where it
    declares none."""
    marker = marker_of(scene.cube.dtype, scene.nodata)
    nan = scene.nodata is not None and np.isnan(scene.nodata)
    gone = np.zeros(scene.cube.shape[1:], bool) if scene.missing is None else scene.missing.copy()
    for band in scene.cube if marker is not None or nan else ():
        gone |= np.isnan(band) if nan else band == marker
    return gone if gone.any() else None


def _invalid(values: np.ndarray, marker: Any) -> np.ndarray:
    invalid = ~np.isfinite(values)
    return invalid if marker is None else invalid | (values == marker)


def in_words(bad: list[BadBand], numbers: Sequence[int], most: int = 8) -> str:
    """"3-5 constant (0), 9 dead (no valid pixel)": neighbours with the same fault together."""
    named = [(numbers[b.index], b.reason) for b in bad]
    groups = []
    for _, run in groupby(enumerate(named), lambda item: (item[1][0] - item[0], item[1][1])):
        run = [item for _, item in run]
        first, last = run[0][0], run[-1][0]
        groups.append(f"{first if first == last else f'{first}-{last}'} {run[0][1]}")
    return (", ".join(groups[:most])
            + (f" and {len(groups) - most} more" if len(groups) > most else ""))


def _filled(scene: Scene, missing: np.ndarray) -> Scene:
    """Invalid pixels get the value of the nearest valid pixel of their band; bands without a valid
    pixel stay.

    Args:
        missing: (H, W), True for pixels that count as invalid in every band.
    """
    if type(scene.cube) is np.ndarray:
        cube = scene.cube.copy(order="C")
    else:
        cube = scratch(scene.cube.shape, native(scene.cube.dtype))
        for index in blocks(scene.cube):
            cube[index] = scene.cube[index]
    marker, before, nearest = marker_of(cube.dtype, scene.nodata), None, None
    bad, made_up, bad_pixels = set(scene.metadata.get("bad_bands", ())), missing.copy(), {}
    for b, band in enumerate(cube):
        invalid = _invalid(band, marker) | missing
        if invalid.all() or not invalid.any():
            continue
        # a scene's border is the same in all its bands
        if before is None or not np.array_equal(invalid, before):
            before = invalid
            nearest = _nearest(invalid)
        band[invalid] = band[nearest[0][invalid], nearest[1][invalid]]
        cube[b] = band
        if b in bad:
            bad_pixels[b] = invalid
        else:
            made_up |= invalid
    nodata, real = scene.nodata, cube.dtype.kind == "f"
    if (missing.any() or bad_pixels) and marker is None and not (real and nodata is not None):
        nodata = np.nan if real else float(np.iinfo(cube.dtype).min)
    metadata = {**scene.metadata, "bad_pixels": bad_pixels} if bad_pixels else scene.metadata
    return dataclasses.replace(scene, cube=cube, nodata=nodata, missing=missing, filled=made_up,
                               metadata=metadata)


def fill(cube: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """A copy of (B, H, W) in which the pixels of `missing` (H, W), not all of them, have the values
    of their nearest others."""
    nearest = _nearest(missing)
    filled = np.array(cube)
    filled[:, missing] = cube[:, nearest[0][missing], nearest[1][missing]]
    return filled


def _nearest(missing: np.ndarray) -> np.ndarray:
    """(2, H, W): row and column of the nearest pixel that is False in `missing`."""
    return scipy.ndimage.distance_transform_edt(missing, return_distances=False,
                                                return_indices=True)
