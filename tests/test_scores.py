"""The scores of analyze.py against brute force, textbook formulas, repetition, and the exact denoiser.

An ECE is above 0 by chance, so it is held against the mean and standard deviation that ece_by_chance derives, at mean + Z sd. A calibrated
model passes that with odds of about 5e-4 if all tokens are in one bin (a normal number past 3.5), 4e-5 if they are in fifteen alike.
"""

import math

import pytest
import torch
from toys import Z, ExactDenoiser

from dsl_loss import add_noise, critical_snr
from scores import auc, ece, ece_by_chance, error_by_entropy, jackknife, share, threshold, trade_off


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def test_auc_counts_pairs_and_halves_ties():
    for seed in range(20):
        score, positive = torch.randint(5, (60,), generator=gen(seed)).float(), torch.rand(60, generator=gen(seed + 99)) < 0.3
        a, b = score[positive][:, None], score[~positive][None]
        assert auc(score, positive) == pytest.approx(((a > b).double() + 0.5 * (a == b)).mean().item(), abs=1e-12)
    assert math.isnan(auc(score, torch.zeros(60, dtype=torch.bool)))


def test_threshold_is_the_smallest_tau_that_keeps_enough():
    margin = torch.arange(100).flip(0).float()
    assert threshold(margin, 0.98) == 97 and threshold(margin, 0.99) == 98 and threshold(margin, 1.0) == 99 and threshold(margin, 0) == 0
    assert threshold(torch.tensor([0.0] * 98 + [3.0] * 2), 0.98) == 0  # plain argmax keeps enough
    margin = torch.rand(999, generator=gen())
    tau = threshold(margin, 0.98)
    assert (margin <= tau).float().mean() >= 0.98 > (margin < tau).float().mean()


def test_trade_off_by_hand():
    margin, error = torch.tensor([0.0, 1, 2, 0, 5]), torch.tensor([False, False, True, True, True])
    curve = trade_off(margin, error, torch.tensor([True, False, True, True, False]))
    assert curve == [(1.0, 1.0, pytest.approx(1 / 3)), (0.0, 0.5, pytest.approx(1 / 3))]  # margin 0 is never changed, margin 5 wrongly


def test_errors_of_shares_and_of_jackknifed_means():
    """400 repetitions: the stated error agrees with the spread within 16%, Z standard errors of a standard deviation of 400 numbers."""
    rate, found = torch.rand(400, 100, 1, generator=gen()), []
    for windows in rate:  # tokens of a window go together, and the windows differ in size
        of = torch.rand(100, 20, generator=gen(len(found))) < 0.2 + 0.6 * windows
        hits = of & (torch.rand(100, 20, generator=gen(1000 + len(found))) < windows)
        found.append(share(hits, of))
    value, stderr = torch.tensor(found).T
    assert stderr.mean() == pytest.approx(value.std().item(), rel=0.16)
    values, window = torch.randn(500, generator=gen()), torch.arange(100).repeat(5)
    value, stderr = jackknife(lambda keep: values[keep].mean().item(), window)
    means = torch.stack([values[window % 10 == g].mean() for g in range(10)])
    assert value == pytest.approx(values.mean().item()) and stderr == pytest.approx(means.std().item() / 10**0.5)  # as in the textbook


def test_chance_alone_makes_the_ece_that_is_stated():
    """400 draws of calibrated predictions: mean and spread of their ECE are those of ece_by_chance, within Z errors (16% of the spread)."""
    confidence = torch.rand(1500, generator=gen()).double() ** 0.5
    mean, sd = ece_by_chance(confidence)
    found = torch.tensor([ece(confidence, torch.rand(1500, generator=gen(1 + seed)).double() < confidence) for seed in range(400)])
    assert abs(found.mean() - mean) < Z * sd / 20 + 0.01 * mean  # 1%: bins hold tens of coin flips, which are not quite normal
    assert found.std() == pytest.approx(sd, rel=0.16)
    assert ece(torch.tensor([0.9, 0.9, 0.1]), torch.tensor([1, 0, 0])) == pytest.approx((2 * 0.4 + 0.1) / 3)
    bins = error_by_entropy(torch.arange(40.0), torch.arange(40) < 20)
    assert [b[1] for b in bins] == [0] * 5 + [1] * 5 and bins[0] == (1.5, 0, 4)


def confident(toy, n=20_000):
    """Confidence and correctness of one token per sequence, so that tokens are independent, at SNRs of many sizes."""
    x0, row = toy.draw(n), torch.arange(n)
    snr = (critical_snr(toy.V) * torch.exp(torch.randn(n, 1, generator=gen())).double()).expand(n, toy.L)
    logits = toy(toy.embed_noisy(add_noise(toy.E[x0], snr, torch.randn(n, toy.L, 4, generator=gen(1)).double())))
    confidence, best = logits[row, row % toy.L].softmax(-1).max(-1)
    return confidence, best == x0[row, row % toy.L]


def test_the_exact_denoiser_is_calibrated_and_distorted_ones_are_not():
    for seed in range(4):
        confidence, correct = confident(ExactDenoiser(V=4, L=3, seed=seed))
        mean, sd = ece_by_chance(confidence)
        assert ece(confidence, correct) < mean + Z * sd
    sharpened = ExactDenoiser(V=4, L=3)
    sharpened.head = lambda h: 2 * h
    for wrong in (ExactDenoiser(V=4, L=3, wrong=1.0), sharpened):
        confidence, correct = confident(wrong)
        mean, sd = ece_by_chance(confidence)
        assert ece(confidence, correct) > mean + 3 * Z * sd
