"""The HTML report: one file, nothing fetched, everything escaped, all methods."""
from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made import scored

from utility.report.figures import band_psnr_figure
from utility.report.page import machine_facts, write_report
from utility.system.errors import UserError

VOID = {"meta", "img", "br", "link"}
METHODS = {"interpolation": "interpolation", "backprojection": "back-projection", "network": "net"}


class Page(HTMLParser):
    """Checks that tags nest, and collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.cells: list[str] = []
        self.bold: list[str] = []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.cells.append(data)
            if "b" in self.open:
                self.bold.append(data)

    def named(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def images() -> list[dict]:
    return scored("feathers", "jasper")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "figure.png"
    band_psnr_figure(path, {"Bicubic": np.linspace(30, 40, 8)})
    return path


def write(path: Path, *args, **how) -> Page:
    write_report(path, *args, **how)
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_fetches_nothing_and_holds_its_pictures(tmp_path, images, picture):
    page = write(tmp_path / "report.html", "A test", {"Command": "python hsi_test.py"}, images,
                 METHODS, [("Per-band PSNR", picture), ("Again", picture)], scale=4)
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"(?:https?:)?//[a-z]|url\(|@import", re.sub(r"base64,[\w+/=]+", "", text))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    sources = [attrs["src"] for attrs in page.named("img")]
    assert len(sources) == 2
    for source in sources:
        kind, data = source.split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == picture.read_bytes()


def test_every_image_and_the_mean_have_every_method_in_the_order_given(tmp_path, images):
    cells = write(tmp_path / "report.html", "A test", {}, images, METHODS, scale=4).cells
    assert [cell for cell in cells if cell in METHODS.values()] == 3 * list(METHODS.values())
    assert all(cells.count(name) == 1 for name in ("feathers", "jasper", "mean of 2"))
    for key, label in METHODS.items():
        shown = [cells[k + 1] for k, cell in enumerate(cells) if cell == label]
        psnr = [image[key]["psnr"] for image in images]
        assert shown == [f"{value:.3f}" for value in (*psnr, np.mean(psnr))]
    alone = write(tmp_path / "alone.html", "A test", {}, images, {"backprojection": "bp"},
                  preset="reference", scale=4, border=2)
    assert alone.cells.count("bp") == 3 and not alone.bold and "SAM [rad] ↓" in alone.cells
    assert "Preset reference, scale x4, border 2 px" in (tmp_path / "alone.html").read_text()


def test_the_best_value_is_bold_and_the_lead_says_the_gain_over_every_other_method(
        tmp_path, images):
    image = images[0]
    page = write(tmp_path / "report.html", "A test", {}, [image], METHODS, scale=4)
    assert f"{image['network']['sam']:.3f}" in page.bold
    assert not {f"{image[key]['sam']:.3f}" for key in ("interpolation", "backprojection")} & set(
        page.bold)
    swapped = {**image, "network": image["backprojection"], "backprojection": image["network"]}
    write(tmp_path / "report.html", "A test", {}, [swapped], METHODS, scale=4)
    low, high, ours = (swapped[key]["psnr"] for key in METHODS)
    assert (f"net: {ours:.2f} dB PSNR on one image, {ours - low:.2f} dB above the {low:.2f} dB of "
            f"interpolation, {high - ours:.2f} dB below the {high:.2f} dB of back-projection.") in (
                tmp_path / "report.html").read_text()


def test_what_was_run_is_listed_with_machine_and_versions(tmp_path):
    text_of = {"Command": "python hsi_test.py -r", "Network": "biqrnn_16_5", "Scale": 4,
               "Checkpoint": None}
    write(tmp_path / "report.html", "A test", text_of)
    text = (tmp_path / "report.html").read_text()
    for part in ("<code>python hsi_test.py -r</code>", "<dd>biqrnn_16_5</dd>", "<dd>4</dd>",
                 "<dt>Date</dt>", "<dt>Machine</dt>", "torch "):
        assert part in text
    assert "Checkpoint" not in text
    assert "<table>" not in text  # nothing to compare without ground truth
    write(tmp_path / "report.html", "A test", {"Date": "2021-02-05"})
    assert (tmp_path / "report.html").read_text().count("<dt>Date</dt>") == 1


def test_a_fact_of_several_numbers_is_a_small_table(tmp_path):
    page = write(tmp_path / "report.html", "A test", {"Others": [["if", "change"], ["a<b", "1%"]]})
    assert page.cells == ["if", "change", "a<b", "1%"]
    assert [attrs["scope"] for attrs in page.named("th")] == ["col", "col", "row"]
    assert page.named("dt") and len(page.named("table")) == 1


def test_strings_from_outside_are_escaped(tmp_path, images, picture):
    evil = '<script>alert("x")</script> & \' "'
    images[0]["name"] = evil
    page = write(tmp_path / "report.html", evil, {evil: evil, "Command": evil}, images,
                 {**METHODS, "network": evil}, [(evil, picture)], lead=evil, scale=4)
    assert not page.named("script")
    assert evil in page.cells
    assert page.named("img")[0]["alt"] == evil


def test_a_missing_or_foreign_figure_is_refused_and_no_page_is_left(tmp_path):
    (tmp_path / "notes.txt").write_text("not a picture")
    for name, words in (("gone.png", "cannot be read"), ("notes.txt", "neither PNG nor JPEG")):
        with pytest.raises(UserError, match=words):
            write_report(tmp_path / "report.html", "A test", {}, figures=[("c", tmp_path / name)])
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_the_machine_is_its_processor_whether_or_not_a_gpu_is_there(monkeypatch):
    plain = machine_facts()["Machine"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "NVIDIA Nothing")
    assert machine_facts()["Machine"] == plain and "threads" in plain
