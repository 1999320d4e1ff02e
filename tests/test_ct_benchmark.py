"""The segmentation score of benchmarks.ct_scores, and what benchmarks.ct reports."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from ct_scans import fan_scan

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import ct
from benchmarks.ct_scores import all_views, matthews, otsu


def test_otsu_finds_the_threshold_that_separates_best() -> None:
    noise = torch.randn(100, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image = 0.3 * noise
    image[:30] += 2

    def between(part: torch.Tensor) -> float:
        """Variance between the classes, from its definition."""
        share = float(part.double().mean())
        return share * (1 - share) * float(image[part].mean() - image[~part].mean()) ** 2

    best = max(between(image > level) for level in torch.linspace(0, 2, 401).tolist())
    assert between(otsu(image)) > 0.999 * best


def test_otsu_takes_the_middle_where_nothing_lies_between() -> None:
    image = torch.tensor([[0.0, 0.1, 0.9, 1.0]])
    assert otsu(image).tolist() == [[False, False, True, True]]
    assert otsu(torch.tensor([[0.0, 0.0, 1.0]])).tolist() == [[False, False, True]]


def test_matthews_is_that_of_the_confusion_matrix() -> None:
    generator = torch.Generator().manual_seed(1)
    truth, found = (torch.rand(20, 30, generator=generator) > 0.4 for _ in range(2))
    tp, tn = float((truth & found).sum()), float((~truth & ~found).sum())
    fp, fn = float((~truth & found).sum()), float((truth & ~found).sum())
    expected = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert matthews(truth, found) == pytest.approx(expected, abs=1e-12)
    assert matthews(truth, truth) == pytest.approx(1)
    assert matthews(truth, ~truth) == pytest.approx(-1)
    assert matthews(truth, torch.ones_like(truth)) == 0


def study(title: str) -> ct.Study:
    """Ellipses by two methods from two parts of their views."""
    return ct.Study(
        title=title,
        text="",
        load=lambda data: {"ellipses": fan_scan},
        settings={f"{views} views": {"views": views} for views in (30, 45)},
        scans={},
        methods={"fbp": ct.Run(), "cgls": ct.Run()},
        prior="",
        truth=all_views,
        score=lambda scan, result: {"psnr": result.metrics["psnr"]},
        figures={"psnr": ("PSNR in dB", 2)},
        pictured=(("30 views",), ("no such method",)),
        gray=(0.0, 1.0),
    )


def test_a_part_of_the_cells_is_computed_and_all_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ct, "STUDIES", {"a": study("First"), "b": study("Second")})
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    cells, report = tmp_path / "cells.jsonl", tmp_path / "ct.md"

    def run(*words: str) -> tuple[int, str]:
        ct.main([*words, "--cells", str(cells), "--report", str(report), "--images", str(tmp_path / "images")])
        return len(cells.read_text().splitlines()), report.read_text()

    count, part = run("--only", "b", "--methods", "fbp", "--settings", "30 views")
    assert count == 1
    assert "cgls" not in part
    count, whole = run()
    assert count == 8
    assert whole.count("| 30 views (1) |") == whole.count("| 45 views (1) |") == 2
    for words in (
        ["--only", "b"],
        ["--methods", "fbp"],
        ["--settings", "45 views", "--scans", "ellipses"],
        ["--tables"],
    ):
        assert run(*words) == (8, whole)
    for words in (["--methods", "dds"], ["--settings", "3 views"], ["--scans", "fbp"]):
        with pytest.raises(SystemExit):
            run(*words)
    assert {path.name for path in tmp_path.iterdir()} == {cells.name, report.name}
