"""What other libraries compute on one fixed pair of cubes, beside this project's indexes.

    python benchmarks/other_metrics.py                           environments in a temporary folder
    python benchmarks/other_metrics.py --environments FOLDER     keep them, and use those that exist

The script makes a virtual environment for each entry of `ENVIRONMENTS`, with pinned packages that
are no requirements of this project. It computes every library there on `tests/pairs.py` and on a
few small cubes, and writes two tables into docs/tests-and-metrics.md between their markers. It
stays outside CI: the environments take 6 GB and a quarter of an hour.
"""
from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "tests-and-metrics.md"
BEGIN, END = (f"<!-- benchmarks/other_metrics.py: {word} -->" for word in ("begin", "end"))
SCALE = 4

ENVIRONMENTS = {
    "new": {"requirements": ["torch==2.13.0", "torchmetrics==1.9.0", "deepinv==0.5.0", "piq==0.8.0",
                             "hyperbench==0.1.0", "HyperEvalSR==1.0.1", "sewar==0.4.10",
                             "scikit-image==0.26.0"],
            "libraries": ["torchmetrics", "deepinv", "piq", "hyperbench", "HyperEvalSR", "sewar",
                          "scikit-image"]},
    "old": {"requirements": ["image-similarity-measures==0.3.6", "sewar==0.4.6"],
            "libraries": ["image-similarity-measures", "sewar"]},
    "pyiqa": {"requirements": ["torch==2.13.0", "pyiqa==0.1.16"], "libraries": ["pyiqa"]},
}

Row = dict[str, float]
Facts = Iterator[tuple[str, Any]]


# What runs in the environments: numpy and the library, nothing of this project --------------------

def hwb(cube: np.ndarray) -> np.ndarray:
    """(B, H, W) -> (H, W, B), contiguous."""
    return np.ascontiguousarray(np.moveaxis(cube, 0, 2))


def tensors(*cubes: np.ndarray) -> list[Any]:
    """Each (B, H, W) -> (1, B, H, W)."""
    import torch
    return [torch.from_numpy(cube)[None] for cube in cubes]


def small(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Two cubes (4, 32, 32), float32, of which the answer is known."""
    rng = np.random.default_rng(0)
    one = rng.random((4, 32, 32), dtype=np.float32)
    other = np.clip(one + rng.normal(0, 0.02, one.shape), 0.01, 1).astype(np.float32)
    if kind == "a zero pixel":
        one[:, 5, 5] = other[:, 5, 5] = 0
    elif kind == "identical":
        other = one
    elif kind == "identical, dark":
        one = other = one * np.float32(1e-4)
    elif kind == "identical, constant":
        one = other = np.full_like(one, 0.5)
    elif kind == "unrelated":
        other = rng.random(one.shape, dtype=np.float32)
    return other, one


def torchmetrics_row(sr: np.ndarray, gt: np.ndarray) -> Row:
    from torchmetrics.functional import image
    x, y = tensors(sr, gt)
    return {"psnr": image.peak_signal_noise_ratio(x, y, data_range=1.0),
            "ssim": image.structural_similarity_index_measure(x, y, data_range=1.0),
            "sam": image.spectral_angle_mapper(x, y),
            "ergas": image.error_relative_global_dimensionless_synthesis(x, y, ratio=SCALE),
            "q": image.universal_image_quality_index(x, y)}


def torchmetrics_facts(sr: np.ndarray, gt: np.ndarray) -> Facts:
    from torchmetrics.functional import image
    for kind in ("identical, dark", "identical, constant"):
        x, y = tensors(*small(kind))
        yield f"Q of cubes that are {kind}", image.universal_image_quality_index(x, y)
    x, y = tensors(*small("a zero pixel"))
    yield "SAM with one zero pixel in both", image.spectral_angle_mapper(x, y)
    for size in (8, 16):
        rase = image.relative_average_spectral_error(*tensors(sr, gt), window_size=size)
        yield f"RASE, window {size}", rase


def deepinv_row(sr: np.ndarray, gt: np.ndarray) -> Row:
    from deepinv import metric
    x, y = tensors(sr, gt)
    return {"psnr": metric.PSNR()(x, y), "ssim": metric.SSIM()(x, y),
            "sam": metric.SpectralAngleMapper()(x, y), "ergas": metric.ERGAS(SCALE)(x, y)}


def deepinv_facts(sr: np.ndarray, gt: np.ndarray) -> Facts:
    from deepinv import metric
    x, y = tensors(*small("a zero pixel"))
    yield "SAM with one zero pixel in both", metric.SpectralAngleMapper()(x, y)


def piq_row(sr: np.ndarray, gt: np.ndarray) -> Row:
    import piq
    x, y = tensors(sr, gt)
    return {"psnr": piq.psnr(x, y), "ssim": piq.ssim(x, y)}


def piq_facts(sr: np.ndarray, gt: np.ndarray) -> Facts:
    import piq
    rng = np.random.default_rng(1)
    rows, columns = np.mgrid[:384, :384] / 20
    gt = np.float32(0.5 + 0.4 * np.sin(rows) * np.cos(columns))[None]
    sr = gt + np.float32(rng.normal(0, 0.05, gt.shape))
    for size in (383, 384):
        x, y = tensors(np.clip(sr[:, :size, :size], 0, 1), gt[:, :size, :size].copy())
        yield f"SSIM of {size} x {size} pixels of one noisy image", piq.ssim(x, y)


def hyperbench_row(sr: np.ndarray, gt: np.ndarray) -> Row:
    import hyperbench
    x, y = hwb(sr), hwb(gt)
    return {"psnr": hyperbench.compute_psnr(y, x), "ssim": hyperbench.compute_ssim(y, x),
            "sam": hyperbench.compute_sam(y, x), "ergas": hyperbench.compute_ergas(y, x),
            "q": hyperbench.compute_uiqi(y, x)}


def hyperbench_facts(sr: np.ndarray, gt: np.ndarray) -> Facts:
    import hyperbench
    x, y = (hwb(1000 + 3000 * cube) for cube in small("unrelated"))
    yield "PSNR of unrelated counts, 1000 to 4000", hyperbench.compute_psnr(y, x)


def hyperevalsr_row(sr: np.ndarray, gt: np.ndarray) -> Row:
    from HyperEvalSR import metrics
    x, y = hwb(sr).astype(float), hwb(gt).astype(float)
    return {"psnr": metrics.PSNR(y, x), "ssim": metrics.SSIM(y, x), "sam": metrics.SAM(y, x),
            "ergas": metrics.ERGAS(y, x, SCALE), "q": metrics.UIQI(y, x)}


def hyperevalsr_facts(sr: np.ndarray, gt: np.ndarray) -> Facts:
    from HyperEvalSR import metrics
    x, y = (hwb(cube).astype(float) for cube in small("identical"))
    for name in ("PSNR", "SSIM", "SAM"):
        yield f"{name} of identical cubes", getattr(metrics, name)(y, x)
    x, y = hwb(sr).astype(float), hwb(gt).astype(float)
    yield "SSIM of the pair with L = 1", metrics.SSIM(y, x, L=1)


def sewar_row(sr: np.ndarray, gt: np.ndarray) -> Row:
    import sewar
    x, y = hwb(sr).astype(float), hwb(gt).astype(float)
    return {"psnr": sewar.psnr(y, x, MAX=1), "ssim": sewar.ssim(y, x, MAX=1)[0],
            "sam": sewar.sam(y, x), "ergas": sewar.ergas(y, x, r=1 / SCALE), "q": sewar.uqi(y, x)}


def sewar_facts(sr: np.ndarray, gt: np.ndarray) -> Facts:
    import sewar
    x, y = (0.5 + 0.5 * hwb(cube).astype(float) for cube in small("unrelated"))
    yield "Q of unrelated noise in [.5, 1]", sewar.uqi(y, x)


def skimage_row(sr: np.ndarray, gt: np.ndarray) -> Row:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity
    x, y = hwb(sr), hwb(gt)
    return {"psnr": peak_signal_noise_ratio(y, x, data_range=1),
            "ssim": structural_similarity(y, x, data_range=1, channel_axis=2, gaussian_weights=True,
                                          use_sample_covariance=False)}


def skimage_facts(sr: np.ndarray, gt: np.ndarray) -> Facts:
    from skimage.metrics import structural_similarity
    yield "SSIM of the pair, 7 x 7 uniform window, its default", structural_similarity(
        hwb(gt), hwb(sr), data_range=1, channel_axis=2)


def similarity_row(sr: np.ndarray, gt: np.ndarray) -> Row:
    from image_similarity_measures import quality_metrics
    x, y = hwb(sr), hwb(gt)
    return {"psnr": quality_metrics.psnr(y, x), "ssim": quality_metrics.ssim(y, x),
            "sam": quality_metrics.sam(y, x)}


def similarity_facts(sr: np.ndarray, gt: np.ndarray) -> Facts:
    from image_similarity_measures import quality_metrics
    yield "PSNR of the pair with max_p = 1", quality_metrics.psnr(hwb(gt), hwb(sr), max_p=1)
    x, y = (hwb(cube) for cube in small("a zero pixel"))
    yield "SAM with one zero pixel in both", quality_metrics.sam(y, x)


def pyiqa_row(sr: np.ndarray, gt: np.ndarray) -> Row:
    return {}


def pyiqa_facts(sr: np.ndarray, gt: np.ndarray) -> Facts:
    import pyiqa
    x, y = tensors(sr, gt)
    for name in ("psnr", "ssim"):
        try:
            found = pyiqa.create_metric(name, device="cpu")(x, y)
        except AssertionError as error:
            found = f"refused: {error}"
        yield f"{name.upper()} of 31 bands", found


LIBRARIES: dict[str, tuple[Callable[..., Row], Callable[..., Facts]]] = {
    "torchmetrics": (torchmetrics_row, torchmetrics_facts),
    "deepinv": (deepinv_row, deepinv_facts), "piq": (piq_row, piq_facts),
    "hyperbench": (hyperbench_row, hyperbench_facts),
    "HyperEvalSR": (hyperevalsr_row, hyperevalsr_facts),
    "sewar": (sewar_row, sewar_facts), "scikit-image": (skimage_row, skimage_facts),
    "image-similarity-measures": (similarity_row, similarity_facts),
    "pyiqa": (pyiqa_row, pyiqa_facts),
}


def forgive_torchvision() -> None:
    """Let torchvision be imported where its compiled operators do not fit the build of torch.

    No index uses these operators.
    """
    try:
        import torch.library
    except ImportError:
        return
    registered = torch.library.register_fake

    def register(name: Any, *args: Any, **options: Any) -> Any:
        if str(name).startswith("torchvision::"):
            return lambda function: function
        return registered(name, *args, **options)

    torch.library.register_fake = register


def measure(names: list[str], pair: Path) -> list[dict[str, Any]]:
    """In an environment: the row and the facts of each library."""
    warnings.simplefilter("ignore")
    forgive_torchvision()
    with np.load(pair) as file:
        sr, gt = file["sr"], file["gt"]
    found = []
    for name in names:
        row, facts = LIBRARIES[name]
        found.append({
            "library": f"{name} {metadata.version(name)}",
            "row": {key: float(value) for key, value in row(sr, gt).items()},
            "facts": [(question, value if isinstance(value, str) else float(value))
                      for question, value in facts(sr, gt)]})
    return found


# What runs here: environments, and the two tables -------------------------------------------------

REASONS = {
    "this project": "PSNR by band; SSIM of the inner windows; SAM in degrees; Q over 8 x 8 windows",
    "torchmetrics": "PSNR of the cube; SSIM counts windows over mirrored borders; SAM in radians; "
                    "Q by a Gaussian window, with an epsilon",
    "deepinv": "PSNR of the cube, with an epsilon in the MSE; the rest is torchmetrics",
    "piq": "PSNR of the cube, with an epsilon in the MSE; SSIM as here up to 383 pixels",
    "hyperbench": "PSNR, SSIM and Q of cubes cut down to 8 bits, SSIM and Q as sewar; "
                  "SAM in degrees",
    "HyperEvalSR": "PSNR's peak is the largest value of the ground truth; SSIM takes each row of "
                   "the image as one window, with L = 255; SAM in radians; UIQI is another index",
    "sewar 0.4.10": "PSNR of the cube; SSIM by an 11 x 11 uniform window; SAM in radians; "
                    "Q with raw moments in place of variances and covariance",
    "sewar 0.4.6": "as 0.4.10, but SAM is the angle between the two images of a band",
    "scikit-image": "PSNR of the cube; SSIM with `gaussian_weights` and no sample covariance",
    "image-similarity-measures": "PSNR and SSIM take a peak of 4095; SAM in degrees",
    "pyiqa": "takes one or three bands",
}
"""What each library does in another way; checked by computing it from the formula."""
COLUMNS = {"psnr": "PSNR", "ssim": "SSIM", "sam": "SAM", "ergas": "ERGAS", "q": "Q"}


def own_row() -> dict[str, Any]:
    """This project's figures of the pair, as a library's."""
    from tests.pairs import metric_pair
    from utility.indexes import evaluate
    sr, gt = metric_pair()
    row, uniform = evaluate(sr, gt, SCALE), evaluate(sr, gt, SCALE, "sspsr")
    radians = math.radians(row["sam"])
    facts = [("PSNR of the whole cube", row["cube_psnr"]), ("SAM in radians", radians),
             ("SSIM, 7 x 7 uniform window (`sspsr`)", uniform["ssim"])]
    for kind in ("identical, dark", "identical, constant"):
        facts.append((f"Q of cubes that are {kind}", evaluate(*small(kind), SCALE)["q"]))
    zero = evaluate(*small("a zero pixel"), SCALE)
    facts.append(("SAM with one zero pixel in both", f"{number(zero['sam'])}, of the other pixels"))
    facts.append(("PSNR of identical cubes", evaluate(*small("identical"), SCALE)["psnr"]))
    return {"library": "this project", "row": {key: row[key] for key in COLUMNS}, "facts": facts}


def reason(library: str) -> str:
    return next(words for name, words in REASONS.items() if library.startswith(name))


def number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return "NaN" if math.isnan(value) else f"{value:.6g}"


def tables(found: list[dict[str, Any]]) -> str:
    """Markdown: the figures of the pair with their reasons, and what small cubes show."""
    heads = ["library", *COLUMNS.values(), "why"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for entry in found:
        figures = [number(entry["row"][key]) if key in entry["row"] else "-" for key in COLUMNS]
        cells = [entry["library"], *figures, reason(entry["library"])]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| library | question | answer |", "|---|---|---|"]
    lines += [f"| {entry['library']} | {question} | {number(value)} |"
              for entry in found for question, value in entry["facts"]]
    return "\n".join(lines)


def in_environment(folder: Path, requirements: list[str], libraries: list[str], pair: Path) -> list:
    """What `measure` gives in a virtual environment, which is made where it does not exist."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
    done = subprocess.run([python, __file__, "--measure", pair, *libraries], check=True,
                          stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def write_page(text: str) -> None:
    """Put the tables between the markers of the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, metavar="FOLDER",
                        help="where virtual environments are kept (default: a temporary folder)")
    parser.add_argument("--measure", nargs="+", metavar=("PAIR", "LIBRARY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[1:], Path(options.measure[0]))))
        return
    sys.path[:0] = [str(ROOT)]
    from tests.pairs import metric_pair
    with tempfile.TemporaryDirectory() as temporary:
        folder, pair = options.environments or Path(temporary), Path(temporary) / "pair.npz"
        sr, gt = metric_pair()
        np.savez(pair, sr=sr, gt=gt)
        found = [own_row()]
        for name, environment in ENVIRONMENTS.items():
            found += in_environment(folder / name, environment["requirements"],
                                    environment["libraries"], pair)
    text = tables(found)
    write_page(text)
    print(text)


if __name__ == "__main__":
    main()
