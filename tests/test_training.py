"""Training: what it learns, from which patches and weights, and what it refuses."""
from __future__ import annotations

import math
import shutil
import signal
import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comparing import same
from made import make_database
from trained import after_step, config, contents, first_validation, history, validating

from models import create_model
from models.lowgrid import LowGrid
from utility.indexes import evaluate
from utility.system.errors import UserError
from utility.training import draws, steps
from utility.training import loop as training
from utility.training.configuration import RECIPES, configure
from utility.training.loop import train
from utility.training.losses import LOSSES, band_loss
from utility.training.plan import prepare
from utility.training.steps import seconds_per_step
from utility.training.validation import psnr

# --- what it learns -------------------------------------------------------------------------------

@pytest.mark.parametrize(("start", "other"),
                         [("interpolation", "backprojection"), ("backprojection", "interpolation")])
def test_the_fast_recipe_starts_as_the_start_image(data, start, other):
    row = first_validation(prepare(config(data, recipe="fast", start=start)))
    assert row["psnr"] == row[f"{start}_psnr"] > 10 and row["psnr"] != row[f"{other}_psnr"]


def test_back_projection_is_the_start_of_every_recipe_but_the_released_one(data):
    assert [config(data, recipe=name).start for name in RECIPES] == [
        "interpolation", "backprojection", "backprojection"]


def test_noise_spoils_the_back_projection_more_than_the_interpolation_and_is_drawn_by_the_seed(
        data):
    def validated(**changes):
        return first_validation(prepare(config(data, recipe="fast", **changes)))

    plain, noisy, again = validated(), validated(noise=0.05), validated(noise=0.05)
    other = validated(noise=0.05, seed=1)
    lost = {name: plain[f"{name}_psnr"] - noisy[f"{name}_psnr"]
            for name in ("interpolation", "backprojection")}
    assert lost["backprojection"] > lost["interpolation"] + 1 and lost["interpolation"] > 0
    assert noisy == again and noisy["psnr"] != other["psnr"]


def test_noise_differs_from_step_to_step(data, monkeypatch):
    real, drawn = draws.add_noise, []
    monkeypatch.setattr(draws, "add_noise", lambda low, *how, **place: (
        drawn.append(real(low, *how, **place) - low), drawn[-1] + low)[1])
    train(config(data, noise=0.1, iterations=2))
    assert not torch.equal(drawn[0], drawn[1]) and drawn[0].std() == pytest.approx(0.1, rel=0.2)


def test_the_released_recipe_lowers_its_loss(data):
    train(config(data, arch="biqrnn_4_2", epochs=4, lr=5e-3, run_dir="r"))
    losses = [row["loss"] for row in contents("r/last.pth")["history"]]
    assert losses[-1] < 0.5 * losses[0]


def test_the_released_recipe_lowers_its_rate_on_a_plateau_down_to_the_lowest(data, monkeypatch):
    validating(monkeypatch, {})
    train(config(data, arch="biqrnn_1_1", epochs=8, batch=10, run_dir="r"))
    rates = [row["lr"] for row in contents("r/last.pth")["history"]]
    assert rates[0] == 1e-4 and rates[-1] == 5e-5


def test_the_fast_rate_warms_up_and_falls_to_zero(data, monkeypatch):
    rates = []
    after_step(monkeypatch, lambda state: rates.append(state.lr))
    train(config(data, recipe="fast", arch="biqrnn_1_1", warmup=5, lr=1e-3, iterations=50,
                 val_batches=1, record_interval=99))
    assert rates[0] == pytest.approx(1e-3 / 5) and max(rates) > 0.97e-3 and rates[-1] < 2e-6
    assert rates.index(max(rates)) == 4


def test_psnr_of_the_validation_is_the_one_of_the_indexes():
    rng = np.random.default_rng(3)
    gt = rng.random((2, 5, 12, 12), dtype=np.float32)
    sr = (gt + 0.1 * rng.normal(size=gt.shape)).astype(np.float32)
    sr[0, 0] = gt[0, 0]  # an identical band, capped
    mine = psnr(torch.from_numpy(sr), torch.from_numpy(gt))
    assert mine.tolist() == pytest.approx(
        [evaluate(a, b, 4)["psnr"] for a, b in zip(sr, gt, strict=True)], abs=1e-9)


def test_bfloat16_trains_to_nearly_the_same(data):
    full = train(config(data, epochs=1, recipe="fast"))
    half = train(config(data, epochs=1, recipe="fast", amp="bf16", run_dir="half"))
    assert half.psnr == pytest.approx(full.psnr, abs=0.1) and half.psnr != full.psnr


def test_a_run_ends_when_its_minutes_are_over_with_a_validation_of_what_it_has(data, monkeypatch):
    now = [0.0]
    after_step(monkeypatch, lambda state: now.append(60.0 * state.iteration))
    monkeypatch.setattr(training, "time", SimpleNamespace(
        monotonic=lambda: now[-1], perf_counter=time.perf_counter, process_time=time.process_time))
    result = train(config(data, minutes=4.0))
    assert (result.iteration, result.interrupted) == (4, False) and result.best
    assert [int(row["iteration"]) for row in history(result.run)] == [3, 4]


def test_the_time_of_a_step_is_measured_without_changing_the_network(data):
    plan = prepare(config(data))
    before = {name: weight.clone() for name, weight in plan.net.state_dict().items()}
    assert seconds_per_step(plan) > 0
    assert same(before, plan.net.state_dict())


@pytest.mark.parametrize(("recipe", "best"), [("released", 1), ("fast", 2)])
def test_the_released_recipe_picks_the_best_by_its_loss_and_others_by_psnr(
        data, monkeypatch, recipe, best):
    rows = [{"psnr": 21.0, "val_loss": 0.1}, {"psnr": 23.0, "val_loss": 0.2},
            {"psnr": 22.0, "val_loss": 0.3}]
    validating(monkeypatch, *rows)
    train(config(data, run_dir="r", recipe=recipe))
    assert contents("r/best.pth")["epoch"] == best and contents("r/last.pth")["epoch"] == 3
    assert contents("r/last.pth")["best_psnr"] == rows[best - 1]["psnr"]


def pair(seed=0):
    truth = torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed),
                       dtype=torch.float64)
    return (truth
            + 0.1
            * torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed + 1),
                         dtype=torch.float64), truth)


def test_the_band_loss_computes_its_formula():
    out, truth = pair()
    bands = angles = 0.0
    for n in range(2):
        for b in range(4):
            error = (out[n, b] - truth[n, b]).square().mean() / truth[n, b].var(correction=0)
            bands += math.log(float(error) + 1e-4)
        cosines = torch.cosine_similarity(out[n], truth[n], dim=0)
        angles += math.log(float(torch.arccos(cosines).mean()) + 1e-3)
    assert abs(float(band_loss(out, truth)) - bands / 8 - 0.3 * angles / 2) < 0.02


def test_the_band_loss_weighs_a_dark_band_as_much_as_a_bright_one():
    out, truth = pair()
    losses = []
    for band in (0, 1):
        worse, gain = out.clone(), torch.ones(1, 4, 1, 1, dtype=torch.float64)
        gain[:, 0] = 0.05
        worse[:, band] += 0.5 * truth[:, band].std()
        losses.append(
            float(band_loss(worse * gain, truth * gain) - band_loss(out * gain, truth * gain)))
    assert 0.5 < losses[0] / losses[1] < 1.5


def test_the_band_loss_s_gradient_is_finite_where_the_result_is_exact_or_dark():
    for truth in (torch.rand(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)):
        out = truth.clone().requires_grad_()
        band_loss(out, truth).backward()
        assert out.grad.isfinite().all()


# --- the problem ----------------------------------------------------------------------------------

@pytest.mark.parametrize("order", ["turn", "random"])
def test_several_scales_alternate_or_are_drawn_by_iteration(data, monkeypatch, order):
    real, scales = steps.given, []
    monkeypatch.setattr(steps, "given", lambda config, gt, scale, *how, **more: (
        scales.append(scale), real(config, gt, scale, *how, **more))[1])
    validating(monkeypatch, {})
    small = {"arch": "biqrnn_1_1", "batch": 1, "epochs": 1, "scales": (2, 4, 8),
             "scale_order": order}
    train(config(data, **small))
    first, scales = scales, []
    train(config(data, run_dir="again", **small))
    assert first == scales and set(scales) == {2, 4, 8}
    assert (scales == [2, 4, 8] * 3) == (order == "turn")


def test_a_training_needs_one_database_at_least_that_validates(data, tmp_path):
    whole = make_database(tmp_path / "whole.lmdb", count=20, validation=0)
    with pytest.raises(UserError, match="holds no validation patches"):
        prepare(config(whole))
    plan = prepare(config((whole, data)))
    assert [len(source.training) for source in plan.sources] == [20, 9]
    assert "all of its 20 train" in plan.notes[0]


def test_a_pass_takes_every_patch_also_those_that_do_not_fill_a_batch(data, monkeypatch):
    real, sizes = training.train_step, []
    monkeypatch.setattr(training, "train_step",
                        lambda state, net, gt, whole: (sizes.append(len(gt)), real(state, net, gt)))
    train(config(data, batch=4, epochs=1))
    assert sizes == [4, 4, 1] and prepare(config(data, batch=64)).steps == 1


def test_patches_are_cropped_to_what_scale_and_network_need(tmp_path):
    odd = make_database(tmp_path / "odd.lmdb", shape=(3, 18, 21), validation=2)
    result = train(config(odd, epochs=1))
    assert "cropped to 16x20" in (result.run / "log.txt").read_text()


def test_a_crop_shows_the_network_squares_and_the_statistics_of_the_whole_patches(
        data, monkeypatch):
    seen, forward = [], LowGrid.forward

    def record(self, x, low, statistics):
        if torch.is_grad_enabled():
            seen.append((x, low, statistics))
        return forward(self, x, low, statistics)

    monkeypatch.setattr(LowGrid, "forward", record)
    for name, crop in (("crop", 8), ("whole", None)):
        train(config(data, arch="lowgrid_2_1", recipe="fast", iterations=6, crop=crop, run_dir=name,
                     cuda=False))
    for (x, low, statistics), (whole_x, whole_low, whole_statistics) in zip(
            seen[:6], seen[6:], strict=True):
        assert torch.equal(statistics, whole_statistics)
        places = 0
        for i, j in product(range(3), repeat=2):
            places += (torch.equal(low, whole_low[..., i:i + 2, j:j + 2])
                       and torch.equal(x, whole_x[..., 4 * i:4 * i + 8, 4 * j:4 * j + 8]))
        assert places == 1
    with pytest.raises(UserError, match="takes a multiple of 4"):
        train(config(data, arch="lowgrid_2_1", crop=6))


def test_patches_smaller_than_the_crop_are_seen_whole_and_that_is_said(data, tmp_path, monkeypatch):
    large = make_database(tmp_path / "large.lmdb", shape=(5, 16, 32), seed=1)
    plan = prepare(config((data, large), arch="lowgrid_2_1", crop=16))
    assert not any("--crop" in text for text in plan.notes)
    assert any(line.endswith(", squares of 16 pixels") for line in plan.describe())
    tall = make_database(tmp_path / "tall.lmdb", shape=(5, 24, 32), seed=1)
    seen, forward = set(), LowGrid.forward
    monkeypatch.setattr(LowGrid, "forward", lambda self, x, *rest: (
        seen.add((torch.is_grad_enabled(), *x.shape[-2:])), forward(self, x, *rest))[1])
    mixed = config((data, tall, large), arch="lowgrid_2_1", crop=20, iterations=9, cuda=False)
    plan = prepare(mixed)
    whole = "smaller than --crop 20, and are seen whole"
    assert [text for text in plan.notes if "--crop" in text] == [
        f"patches of {data} are 16x16, {whole}", f"patches of {large} are 16x32, {whole}"]
    assert any(line.endswith(", squares of 20 pixels of the larger patches")
               for line in plan.describe())
    train(mixed, plan)
    assert {(h, w) for grad, h, w in seen if grad} == {(16, 16), (20, 20), (16, 32)}
    for given, size in (((data,), "16x16"), ((data, large), "16x16 and 16x32")):
        with pytest.raises(UserError, match=f"The patches are {size} pixels, all smaller than "
                                            "--crop 20; give --crop 16 or less"):
            prepare(config(given, arch="lowgrid_2_1", crop=20))


def test_a_crop_as_high_as_the_patches_is_cut_from_their_width(tmp_path, monkeypatch):
    seen, forward = [], LowGrid.forward
    monkeypatch.setattr(LowGrid, "forward", lambda self, x, *rest: (
        torch.is_grad_enabled() and seen.append(tuple(x.shape[-2:])), forward(self, x, *rest))[1])
    wide = make_database(tmp_path / "wide.lmdb", shape=(5, 16, 32))
    train(config(wide, arch="lowgrid_2_1", crop=16, epochs=1, cuda=False))
    assert set(seen) == {(16, 16)}


def test_patches_that_reference_darkens_are_said_once(tmp_path):
    data = tuple(make_database(tmp_path / f"{k}.lmdb", shape=(3, 32, 32), count=4, validation=2)
                 for k in range(2))
    said = [prepare(config(data, scales=(2,), degradation=kind, recipe="fast")).notes
            for kind in ("reference", "spatial")]
    assert said[1] == [] and len(said[0]) == 1 and "26 or 34 instead of 32 pixels" in said[0][0]


def test_several_databases_of_other_bands_train_the_same_weights_and_each_is_validated(
        data, tmp_path):
    more = make_database(tmp_path / "more.lmdb", shape=(9, 8, 8), seed=1, count=9, validation=3)
    result = train(config((data, more), scales=(2,), epochs=1, run_dir="r",
                          cuda=False))
    row = contents(result.last)["history"][0]
    assert result.iteration == 3 + 2
    assert row["gain"] == pytest.approx((row["gain_small"] + row["gain_more"]) / 2)
    assert ("more +" in (result.run / "log.txt").read_text()
            or "more -" in (result.run / "log.txt").read_text())
    assert contents(result.last)["bands"] == [5, 9]
    alone = first_validation(prepare(configure({"init": "r/last.pth", "data": data})))
    assert alone["gain"] == pytest.approx(row["gain_small"])


def test_weights_share_the_steps_of_several_databases(data, tmp_path, monkeypatch):
    more = make_database(tmp_path / "more.lmdb", shape=(9, 8, 8), count=9, validation=3)
    bands = []
    real = training.train_step
    monkeypatch.setattr(
        training, "train_step",
        lambda state, net, gt, whole: (bands.append(gt.shape[1]), real(state, net, gt)))
    validating(monkeypatch, {})
    train(config((data, more), scales=(2,), iterations=12, weights=(1, 3), arch="biqrnn_1_1"))
    assert bands.count(5) == 3 and bands[:4].count(5) == 1
    with pytest.raises(UserError, match="2 weights for 1 databases"):
        config(data, weights=(1, 3))


def test_cudnn_tries_all_its_algorithms_in_training(data, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark_limit", 10)
    validating(monkeypatch, {})
    train(config(data, iterations=1, arch="biqrnn_1_1"))
    assert torch.backends.cudnn.benchmark and torch.backends.cudnn.benchmark_limit == 0


def test_the_plan_follows_its_options(data):
    plan = prepare(config(data, val_batches=1, checkpoint_activations=True))
    assert len(plan.sources[0].validation) == 3 and plan.net.execution.checkpoint


def test_few_steps_of_the_released_recipe_are_remarked_on(data):
    assert any("makes 9 steps" in note for note in prepare(config(data)).notes)
    for changes in ({"recipe": "fast"}, {"epochs": 400}):
        assert not any("steps" in note for note in prepare(config(data, **changes)).notes)


# --- weights to start from ------------------------------------------------------------------------

@pytest.fixture
def pretrained(data) -> str:
    """A network as it starts under the fast recipe: its start image."""
    return str(train(config(data, recipe="fast", iterations=1, lr=1e-9, run_dir="pretrained")).best)


def test_a_fine_tuning_never_ends_below_where_it_started(pretrained, tmp_path, capsys):
    scene = make_database(tmp_path / "scene.lmdb", count=9, shape=(5, 32, 32), validation=2)
    result = train(configure({"init": pretrained, "data": scene, "lr": 0.5, "last_lr": 1.0,
                              "epoch_steps": 3, "patience": 2, "run_dir": "tuned",
                              "tensorboard": False}))
    rows, best = contents(result.last)["history"], contents(result.best)
    assert ([row["epoch"] for row in rows] == [0, 1, 2]
            and contents(result.last)["config"]["iterations"] == 1000)
    assert rows[1]["psnr"] < rows[0]["psnr"] == best["psnr"] and best["epoch"] == 0
    assert same(dict(best["net"]), dict(contents(pretrained)["net"]))
    assert "before any step" in (result.run / "log.txt").read_text()
    with pytest.raises(UserError, match="larger --patience"):
        train(configure({"resume": "tuned/last.pth"}))


def test_fine_tuning_is_counted_in_steps_and_leaves_no_patch_out(pretrained, data):
    plan = prepare(configure({"init": pretrained, "data": data}))
    # 9 passes of 3 steps
    assert (plan.config.recipe, plan.total, plan.steps) == ("finetune", 1000, 27)
    assert plan.config.batch <= 4 and plan.config.last_lr > 0.1 and plan.config.lr == 5e-5
    assert prepare(configure({"init": pretrained, "data": data, "epochs": 2})).total == 54


def test_frozen_parts_keep_their_weights_also_when_resumed(pretrained, data):
    tuned = {"init": pretrained, "data": data, "freeze": ("encoder", "feature_extractor"),
             "epochs": 1, "epoch_steps": 1, "tensorboard": False, "run_dir": "r"}
    train(configure(tuned))
    train(configure({"resume": "r/last.pth", "epochs": 2}))
    before, after = contents(pretrained)["net"], contents("r/last.pth")["net"]
    changed = {
        name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "reconstructor"}
    with pytest.raises(UserError, match=r"no part encodr.*encoder"):
        prepare(configure(tuned | {"freeze": ("encodr",)}))


def test_init_takes_weights_network_and_problem_and_starts_anew_on_any_bands(data, tmp_path):
    train(config(data, epochs=1, scales=(2,), degradation="gaussian", run_dir="first"))
    other = make_database(tmp_path / "other.lmdb", shape=(9, 16, 16))
    plan = prepare(configure({"init": "first/best.pth", "data": other, "recipe": "fast"}))
    assert (plan.config.arch, plan.config.scales, plan.config.degradation) == (
        "biqrnn_2_1", (2,), "gaussian")
    assert same(dict(plan.net.state_dict()), dict(contents("first/best.pth")["net"]))
    result = train(configure({"init": "first/best.pth", "data": other, "epochs": 1, "batch": 5,
                              "run_dir": "second", "scales": (4,), "tensorboard": False,
                              "recipe": "released"}))
    saved = contents(result.last)
    assert (saved["epoch"], saved["iteration"], saved["bands"], saved["scale"]) == (1, 2, 9, 4)
    assert {int(s["step"]) for s in saved["optimizer"]["state"].values()} == {2}


def test_a_released_alternating_network_is_noted_when_nothing_says_how_it_adds_its_input(data):
    torch.save({"net": create_model("qrnn_4_2").state_dict()}, "released.pth")
    start = {"init": "released.pth", "data": data, "batch": 2}
    assert "does not say long_skip" in prepare(configure(start)).notes[0]
    note, = prepare(configure(start | {"options": {"long_skip": True}})).notes
    assert "does not say which scenes it was trained on" in note


def test_a_checkpoint_names_all_scenes_that_its_weights_have_seen(tmp_path):
    first, second = (
        {"file": f"{name}.mat", "sha256": name, "regions": [[0, 0, 8, 8]]} for name in "ab")
    one = make_database(tmp_path / "one.lmdb", sources=[first])
    both = make_database(tmp_path / "both.lmdb", sources=[first, second])
    small = {"tensorboard": False, "arch": "biqrnn_1_1"}
    train(config(one, run_dir="r", epochs=1, **small))
    assert contents("r/last.pth")["trained_on"] == [first]
    train(configure({"init": "r/last.pth", "data": both, "iterations": 1, "run_dir": "s",
                     "tensorboard": False}))
    assert contents("s/last.pth")["trained_on"] == [first, second]
    train(configure({"resume": "s/last.pth", "data": one, "iterations": 2}))
    assert contents("s/last.pth")["trained_on"] == [first, second]


# --- what it refuses ------------------------------------------------------------------------------

@pytest.mark.parametrize("epoch", [0, 1])
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(data, monkeypatch, epoch):
    real = LOSSES["mse"]
    calls = iter(range(10**6))
    monkeypatch.setitem(LOSSES, "mse",
                        lambda a, b: real(a, b) * (float("nan") if next(calls) > 7 * epoch else 1))
    with pytest.raises(UserError) as error:
        train(config(data, run_dir="r"))
    assert "\n" not in str(error.value) and f"epoch {epoch + 1}" in str(error.value)
    if epoch:
        assert "r/last.pth holds the state before" in str(error.value)
        saved = contents("r/last.pth")
        assert saved["epoch"] == 1 and all(torch.isfinite(w).all() for w in saved["net"].values())
    else:
        assert "nothing was saved" in str(error.value) and not list(Path("r").glob("*.pth"))


def test_weights_that_became_nan_are_not_saved_by_an_interruption(data, monkeypatch):
    def spoil(state):
        if state.iteration == 4:
            next(state.net.parameters()).data[0] = float("nan")
            signal.raise_signal(signal.SIGINT)

    after_step(monkeypatch, spoil)
    with pytest.raises(UserError, match="NaN"):
        train(config(data, run_dir="r"))
    assert contents("r/last.pth")["iteration"] == 3


@pytest.mark.parametrize(("changes", "words"), [
    ({"arch": "biqrnn_16"}, "did you mean"),
    ({"scales": (5,)}, "scale factor 5"),
    ({"scales": (3,), "degradation": "gaussian"}, "even"),
    ({"scales": (4, 4)}, "different"),
    ({"degradation": "blur"}, "'blur'"),
    ({"recipe": "slow"}, "released, fast"),
    ({"batch": 0}, "batch is 0"),
    ({"lr": 0.0}, "lr is 0"),
    ({"lr": float("nan")}, "lr is nan"),
    ({"seed": -1}, "seed is -1"),
    ({"resume": "none.pth"}, "none.pth"),
    ({"init": "none.pth"}, "none.pth"),
    ({"data": "none.lmdb"}, "none.lmdb"),
    ({"amp": "fp16", "cuda": False}, "needs a GPU"),
    ({"pooling": "cuda"}, "choose one of auto"),
    ({"run_dir": "."}, "choose another --run-dir"),
    # no database: it must not start them
    ({"threads": 1025, "data": "none.lmdb"}, "1024 loader processes at most"),
])
def test_bad_input_is_one_sentence_and_leaves_nothing(data, tmp_path, changes, words):
    Path("something").touch()
    with pytest.raises(UserError) as error:
        train(config(**({"data": data} | changes)))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["something"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_when_it_was_asked_for(data):
    with pytest.raises(UserError, match="--no-cuda"):
        prepare(config(data, gpu_ids=(0,)))
    assert (prepare(config(data)).device.type
            == prepare(config(data, gpu_ids=(0,), cuda=False)).device.type == "cpu")


@pytest.mark.parametrize(("shape", "changes", "words"),
                         [((3, 6, 6), {"scales": (8,)}, "at least 8x8"),
                          ((2, 16, 16), {"amp": "bf16", "cuda": False}, "2 bands")])
def test_patches_too_small_for_the_scale_or_the_precision_are_refused(shape, changes, words):
    with pytest.raises(UserError, match=words):
        prepare(config(make_database("small.lmdb", shape=shape), **changes))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
def test_a_compiled_network_is_trained_to_nearly_the_same(data, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    small = {"arch": "biqrnn_1_1", "iterations": 3, "recipe": "fast", "cuda": False}
    plain, compiled = (
        train(config(data, compile=on, run_dir=f"compile_{on}", **small)) for on in (False, True))
    assert list((tmp_path / "inductor").rglob("*.so"))  # it was compiled indeed
    assert compiled.iteration == 3 and compiled.psnr == pytest.approx(plain.psnr, abs=1e-3)
    assert contents(compiled.last)["net"].keys() == contents(plain.last)["net"].keys()


def test_a_network_that_cannot_be_compiled_ends_the_run_with_one_sentence(data, monkeypatch):
    def compiled(net):
        def call(*inputs):
            raise type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})(
                "no compiler.\nand more")
        return call

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(UserError,
                       match=r"^biqrnn_2_1 cannot be compiled here \(InductorError: no compiler\); "
                       r"leave --compile"):
        train(config(data, compile=True))
