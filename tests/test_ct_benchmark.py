"""The segmentation score of benchmarks.ct_scores."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.ct_scores import matthews, otsu


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
