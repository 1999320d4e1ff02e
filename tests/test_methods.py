"""What is known of a method: by its signature, and by what its file says beside it."""

import pytest
import torch

from recon.errors import InputError
from recon.methods import METHODS, caveat_of, described, has_levels, levels_of, options_of, preset


def levels(likelihood, denoiser, steps=None):
    return torch.linspace(1, 0, 3 if steps is None else steps + 1)


@described(levels=levels, caveat="It guesses.")
def guess(likelihood, denoiser, sigmas, *, rng, strength=1.0):
    """A guess."""


def test_a_preset_says_what_its_method_does_but_for_what_it_sets():
    setting = preset(guess, "A bold guess.", strength=2.0)
    assert setting.__doc__ == "A bold guess."
    assert options_of(setting) == {"strength": 2.0}
    assert caveat_of(setting) == "It guesses."
    assert levels_of(setting) is levels


def test_a_preset_may_have_levels_of_its_own():
    setting = preset(guess, "A long guess.", levels=lambda likelihood, denoiser, steps: levels(likelihood, denoiser, 9))
    assert len(levels_of(setting)(None, None, None)) == 10
    assert levels_of(guess) is levels


def test_a_method_of_which_nothing_is_said():
    assert not has_levels(METHODS["tv"])
    assert caveat_of(METHODS["tv"]) == ""
    with pytest.raises(
        InputError, match=r"total_variation: expected noise levels, got none; give them with @described"
    ):
        levels_of(METHODS["tv"])


def test_a_caveat_goes_with_the_coils_and_the_settings_of_its_method():
    assert caveat_of(METHODS["score-mri-rss"]) == caveat_of(METHODS["score-mri"]) != ""
    assert caveat_of(METHODS["diffpir-100"]) == caveat_of(METHODS["diffpir"]) != ""
