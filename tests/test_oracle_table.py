"""The table of samplers in benchmarks/results/oracle.md is that of the samplers as they are, by a smaller sample."""

import json

import pytest
import torch

from benchmarks.oracle import TABLE, figures, problems, samplers
from recon.errors import ReconError

CHAINS = 500
STORED = json.loads(TABLE.read_text())["defaults"]


def test_every_sampler_is_in_the_table() -> None:
    assert {row["sampler"] for row in STORED} == {*samplers()}


@pytest.mark.parametrize("name", samplers())
def test_the_table_holds(name: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    (stored,) = (row for row in STORED if row["sampler"] == name and row["problem"] == "real")
    try:
        if "refused" in stored:
            with pytest.raises(ReconError):
                figures(name, problems()["real"], chains=CHAINS)
            return
        found = figures(name, problems()["real"], chains=CHAINS)
    finally:
        torch.set_num_threads(threads)
    # Chance, 500 chains against 4000: .05 of the samples' own spread in the mean, of the variance .06 of itself with
    # some 4 effective components, of the ends of an interval .1 of a spread; three times that.
    spread = stored["cov"] ** 0.5
    assert found["mean"] == pytest.approx(stored["mean"], abs=0.15 * spread + 0.01)
    assert found["cov"] == pytest.approx(stored["cov"], rel=0.2, abs=1e-6)
    assert found["coverage"] == pytest.approx(stored["coverage"], abs=0.06)
    assert found["evaluations"] == stored["evaluations"]
