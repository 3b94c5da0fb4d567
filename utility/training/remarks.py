"""What a training says: a line an epoch, warnings, what to type next."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from utility.datasets.cards import load_card
from utility.system.errors import UserError
from utility.system.files import shown
from utility.training.runs import RunFolder
from utility.training.state import State

FAR_BELOW = 3.0
"""dB of PSNR below its start image at which a network is said to be of no use yet."""


def epoch_line(row: Mapping[str, Any], speed: Mapping[str, float] | None) -> str:
    loss = f"loss {row['loss']:.3e}" if speed else "before any step"
    rate = (f"  {speed['patches_per_s']:.1f} patches/s  data wait {100 * speed['data_wait']:.1f} %"
            if speed else "")
    parts = "".join(
        f", {name[5:]} {value:+.2f}" for name, value in row.items() if name.startswith("gain_"))
    return (f"epoch {row['epoch']:>3}  iteration {row['iteration']:>6}  {loss}  PSNR "
            f"{row['psnr']:.3f} dB, gain over interpolation {row['gain']:+.3f}{parts}, over "
            f"back-projection {row['backprojection_gain']:+.3f}  lr {row['lr']:.1e}{rate}")


def far_below(state: State) -> list[str]:
    """A warning where the last validation is far below the start image."""
    row = state.history[-1] if state.history else {}
    gain = row.get("gain" if state.config.start == "interpolation" else "backprojection_gain", 0.0)
    if gain > -FAR_BELOW:
        return []
    return [f"after epoch {row['epoch']} the network is {-gain:.1f} dB below its start image, "
            "which it makes worse. Try a lower --lr, --clip 1 or --recipe fast, or go on if this "
            "is the beginning of a long training."]


def without_gain(state: State) -> list[str]:
    """A warning where the best validation is not above both untrained methods, or not above the
    weights that were given."""
    if not state.counted:
        return []
    best = max(state.counted, key=state.score)
    gains = {"the interpolation": best["gain"], "back-projection": best["backprojection_gain"]}
    words = " and ".join(f"{abs(gain):.2f} dB {'above' if gain > 0 else 'below'} {name}"
                         for name, gain in gains.items())
    found = []
    if min(gains.values()) <= 0:
        cure = "train longer" + ", or with --recipe fast" * (state.config.recipe == "released")
        found.append(f"the best network (iteration {best['iteration']}) is {words} on the "
                     f"validation patches; neither needs training, so {cure}")
    if len(state.counted) > 1 and best["iteration"] == 0:
        found.append("no validation was above that of the given weights, which best.pth holds; a "
                     "lower --lr may help")
    return found


def what_is_next(run: RunFolder, best: Path | None, last: Path | None, interrupted: bool,
                  cards: Sequence[str]) -> list[str]:
    if not (best or last):
        return [f"no checkpoint was saved in {shown(run.path)}"]
    return [*(
        [f"go on with:  python hsi_sr.py -r -rp {shown(last)}"] if interrupted and last else []),
            *([] if best
              else ["no epoch has finished, so there is no best.pth; last.pth holds the state as "
                    "it was"]),
            f"test with:   python hsi_test.py -r -rp {shown(best or last)}{_test_scenes(cards)}"]


def _test_scenes(cards: Sequence[str]) -> str:
    """The options by which hsi_test.py finds these cards' held-out scenes; none for samples."""
    for name in cards:
        with suppress(UserError):  # a card that is gone
            card = load_card(name)
            if card.test_region or card.test_source:
                return ("" if name == "sample"
                        else f" --dataset {shown(name) if name.endswith('.toml') else name}")
    return " --data YOUR_SCENES" if cards else ""
