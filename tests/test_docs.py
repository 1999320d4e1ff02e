"""The code in docs/ runs, and prints what the text says."""

import re
from pathlib import Path

import pytest
import torch

from recon.methods import METHODS

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_on_samplers(capsys: pytest.CaptureFixture[str]) -> None:
    page = (DOCS / "writing-a-sampler.md").read_text()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    names: dict[str, object] = {}
    try:
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(block, names)
    finally:
        torch.set_num_threads(threads)
        METHODS.pop("ddnm", None)
    printed = capsys.readouterr().out.splitlines()
    quality, evaluations = printed[0].split()
    assert float(quality) > 15
    assert evaluations == "5"
    assert f"`{printed[1]}`" in page
