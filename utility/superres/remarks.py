"""What a user is told of a result: how well it agrees with its input, what to beware of."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from utility.cubes.cube import Scene
from utility.degradation import STEPS, Degradation, dark_note, grid
from utility.names import UNTRAINED
from utility.superres.uncertainty import FAR, MUCH

ALIASED = ("this cube is aliased; interpolation is used. Its steps are sharper than the blur of a "
           "sensor leaves them, as where every n-th pixel was taken, or a kernel without "
           "antialiasing; a network would sharpen what is not blurred. --mtf M or --method network "
           "insists on the network")
"""What is said of a cube that `aliasing.for_aliasing` finds aliased."""
WIDER_TOLD, WIDER_ASSUMED = 0.05, 0.3
"""Degrees by which the spectral angle of a network's agreement is above that of the interpolation's
where the network is warned of: with an MTF that is told, and with an assumed one, with which the
interpolation of a blurred cube agrees too well. Of 13 real scenes at x4 they find the one whose
angles to the truth are above the interpolation's, and no other."""


def uncertainty_in_words(summary: Mapping[str, Any]) -> str:
    """The shares of halos and the spread in a summary of `inference`."""
    text = (f"{_shares(summary, 'halo')[0]} of its values lie outside the range of the 3 x 3 input "
            f"pixels around them ({_shares(summary, 'halo')[1]}): halos, or detail finer than "
            "these pixels")
    if found := summary["spread"]:
        text += ("; the 8 results of the self-ensemble have a standard deviation of "
                 f"{found['mean']:.3g}, {found['mean_of_range']:.2%} of the range of the values, "
                 f"as a map in {found['file']}")
    return text


def far_out(summary: Mapping[str, Any]) -> list[str]:
    """A warning where `inference` counts many values far outside their band's range."""
    if summary["far_out"][summary["method"]] <= MUCH or summary.get("likely_fill"):
        return []
    (own, rivals), kind = _shares(summary, "far_out"), summary["degradation"]
    cure = (f". Where the input is sharper than {kind} at x{summary['scale']} assumes, a larger "
            "--mtf fits better")
    return [f"{own} of the values lie outside the range of their band in the input by more than "
            f"{FAR:.0%} of it ({rivals}), more than detail explains: they overshoot{cure}"]


def _shares(summary: Mapping[str, Any], what: str) -> tuple[str, str]:
    """The share of the result, and those of the untrained methods by name."""
    share, method = summary[what], summary["method"]
    return (
        f"{share[method]:.1%}",
        ", ".join(f"{name}: {share[key]:.1%}" for key, name in UNTRAINED.items() if key != method))


def bad_in_words(whole: Scene, bad: list[int]) -> str | None:
    """Which bands are bad and what becomes of them; None where none is."""
    numbers = [str(whole.metadata.get("source_bands", range(len(whole.cube)))[b]) for b in bad]
    listed = ", ".join(numbers[:20]) + ", ..." * (len(numbers) > 20)
    return ((f"{len(bad)} bad band{'s' * (len(bad) > 1)} ({listed}, counted from 0), enlarged by "
             "interpolation in space, without the network; a constant band stays constant") if bad
            else None)


def agreement_in_words(summary: Mapping[str, Any]) -> str:
    """How well the result and the untrained methods, degraded again, agree with the input."""
    rows, method = summary["consistency"], summary["method"]
    names = {**UNTRAINED, "backprojection": "back-projection, which is made to agree"}
    words = [f"{name}: {_agreement(rows[key])}" for key, name in names.items() if key != method]
    if "network_before" in rows:
        words.insert(0, f"before its back-projection: {_agreement(rows['network_before'])}")
    pixels, all_pixels = summary["compared_pixels"], summary["input_pixels"]
    left_out = (f", at the {pixels} of {all_pixels} pixels that no missing one has a part in"
                if pixels < all_pixels else "")
    return (f"degraded again it agrees with the input to {_agreement(rows[method])} "
            f"({'; '.join(words)}){left_out}. This is agreement with the input, not accuracy")


def _agreement(row: Mapping[str, float | None]) -> str:
    return (f"{row['psnr']:.1f} dB PSNR"
            + ("" if row["sam"] is None else f", {row['sam']:.2f} deg SAM"))


def _agrees_less(summary: Mapping[str, Any]) -> bool:
    """Whether the network agrees with the input less than the interpolation, in PSNR or clearly in
    angle. With noise the angle says nothing: it is that of the noise, which the network removes."""
    network, plain = summary["consistency"]["network"], summary["consistency"]["interpolation"]
    if network["psnr"] < plain["psnr"]:
        return True
    if summary["snr"] is not None or network["sam"] is None or plain["sam"] is None:
        return False
    told = summary["mtf_known"] and not summary["sharp"]
    return network["sam"] > plain["sam"] + (WIDER_TOLD if told else WIDER_ASSUMED)


def _cure(summary: Mapping[str, Any]) -> str:
    """What helps a network that agrees less."""
    if summary["snr"] is not None:
        return ("; it removes noise, which the interpolation keeps. A cube with less noise needs a "
                "higher --snr, or --snr none")
    return f"; --backproject {STEPS} makes its result agree, where the input is not noisy"


def warnings_of(summary: Mapping[str, Any], scene: Scene) -> list[str]:
    """Sentences about what a user must not miss: a network that agrees less than the interpolation,
    values far out, a grid of its own, dark rows."""
    rows, scale, kind = summary["consistency"], summary["scale"], summary["degradation"]
    warnings = [ALIASED] if summary["aliased"] else []
    # Back-projection agrees by construction, better than good networks do: its figure stands
    # beside, and warns of nothing.
    if "network" in rows and _agrees_less(summary):
        of = " in angle" * (rows["network"]["psnr"] >= rows["interpolation"]["psnr"])
        warnings.append(f"the network agrees with the input less{of} "
                        f"({_agreement(rows['network'])}) "
                        f"than the interpolation does ({_agreement(rows['interpolation'])})"
                        + ("" if summary["backproject"] else _cure(summary)))
    height, width = scene.cube.shape[1:]
    if (not Degradation.of(scale, kind).block_grid
            and (scene.transform or "map info" in scene.metadata.get("header", {}))):
        size, edge = grid(width, scale, kind)
        warnings.append(f"the grid of degradation {kind} is not the sensor's: the pixels of the "
                        f"result are {size:.5f} of the input's, and its corner lies {edge:.2f} "
                        "input pixels inside of the input's. Its transform says so; --degradation "
                        "gaussian or bicubic keeps edges and corner")
    return [*warnings, *far_out(summary),
            *filter(None, [dark_note(height * scale, width * scale, scale, kind)])]
