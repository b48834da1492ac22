"""Scores of probabilities and of decisions, each with its error: means, shares, calibration, detection. Plain tensors in, numbers out.

The tokens of a text are not independent of each other, so standard errors are taken over windows: by the delta method for a ratio of
sums, by the jackknife over groups of windows for the rest. A score with its error is a pair (value, standard error).
"""

import math

import torch

BINS, GROUPS = 15, 10


def mean_and_stderr(values):
    """Mean and standard error of independent values (N,) -> two floats. For stratified values the error is an overestimate."""
    values = values.double()
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def share(hits, of):
    """The share of the tokens `of` (N, L) that `hits` (N, L) marks too -> (value, standard error over N windows); nan without any token.

    A ratio of two sums: windows with more tokens weigh more, and its error is that of the residuals hits - value * of (delta method).
    """
    hit, total = (hits & of).sum(1).double(), of.sum(1).double()
    value = hit.sum() / total.sum()
    return value.item(), ((hit - value * total).std() / total.mean() / len(of) ** 0.5).item()


def jackknife(statistic, window):
    """statistic(keep (n,) bool) -> float, of n tokens that belong to `window` (n,) -> (value, standard error): leave out every tenth window
    in turn. The error is that of the value, bias or not: an ECE that chance has raised stays raised, and there the error is up to 1.5 times
    too large."""
    group = window.long() % GROUPS
    parts = group.unique()
    values = torch.tensor([statistic(group != g) for g in parts] if len(parts) > 1 else [], dtype=torch.float64)
    spread = (values - values.mean()).square().sum() * (len(values) - 1) / len(values) if len(values) > 1 else torch.tensor(math.nan)
    return float(statistic(torch.ones_like(group, dtype=torch.bool))), spread.sqrt().item()


# ---- detection ---------------------------------------------------------------------------------------------------------------


def auc(score, positive):
    """score, positive (n,) -> the probability that a random positive has a higher score than a random negative, ties counting one half.

    By ranks (Mann and Whitney): (sum of the positives' midranks - P (P + 1) / 2) / (P N), P positives and N negatives; nan without both.
    """
    _, place, ties = score.unique(return_inverse=True, return_counts=True)
    midrank = (ties.cumsum(0) - (ties - 1) / 2).double()[place]
    P, N = positive.sum().double(), (~positive).sum()
    return ((midrank[positive].sum() - P * (P + 1) / 2) / (P * N)).item()


def threshold(margin, kept):
    """The smallest tau >= 0 that keeps a share `kept` of clean tokens: margin (n,) >= 0, a token being changed where margin > tau."""
    needed = math.ceil(kept * len(margin) - 1e-9)  # so many must have margin <= tau
    return margin.sort().values[needed - 1].item() if needed > 0 else 0.0


def trade_off(margin, error, repairs):
    """What is won and lost as tau falls to 0: margin, error, repairs (n,) -> list of (tau, kept, fixed), 1 - kept from 0.001 up.

    error marks the wrong tokens, repairs those whose likeliest token is the true one.
    """
    clean, wrong = margin[~error], error.sum()
    taus = sorted({0.0, *(threshold(clean, 1 - spoilt) for spoilt in torch.logspace(-3, 0, 49).tolist())}, reverse=True)
    return [(tau, (clean <= tau).double().mean().item(), ((error & repairs & (margin > tau)).sum() / wrong).item()) for tau in taus]


# ---- calibration -------------------------------------------------------------------------------------------------------------


def reliability(confidence, correct):
    """Equal-width bins: confidence (n,) in [0, 1], correct (n,) 0 or 1 -> count, confidence, accuracy, variance, (BINS,) each.

    confidence and accuracy are means; variance is sum c (1 - c), that of the number correct were each token right with probability c.
    """
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    count, c, right, variance = (torch.bincount(place, weights, BINS) for weights in
                                 (None, confidence.double(), correct.double(), (confidence * (1 - confidence)).double()))
    return count, c / count.clamp(min=1), right / count.clamp(min=1), variance


def ece(confidence, correct):
    """Expected calibration error: |accuracy - confidence| of each bin, weighted by its count -> float (Guo et al. 2017, equation 3)."""
    count, c, accuracy, _ = reliability(confidence, correct)
    return ((accuracy - c).abs() * count).sum().item() / len(confidence)


def ece_by_chance(confidence):
    """What a perfectly calibrated model of these confidences (n,) scores -> (mean, standard deviation) of its ECE.

    Absolute values of chance never cancel, so ECE is above 0 for every finite n: a bin's gap is normal of the variance sum c (1 - c), whose
    absolute value has mean sqrt(2/pi) and variance 1 - 2/pi in its units. For independent tokens, so many that this sum is above 1 in each
    bin that counts; the true mean is somewhat higher.
    """
    variance = reliability(confidence, torch.zeros_like(confidence))[3]
    spread = ((1 - 2 / math.pi) * variance.sum()).sqrt()
    return ((2 / math.pi * variance).sqrt().sum() / len(confidence)).item(), (spread / len(confidence)).item()


def error_by_entropy(entropy, correct):
    """Ten bins of equal count: entropy (n,) nats, correct (n,) -> list of (mean entropy, error rate, count), entropy rising."""
    order = entropy.argsort(stable=True)
    parts = zip(entropy[order].tensor_split(10), correct[order].double().tensor_split(10))
    return [(h.double().mean().item(), 1 - c.mean().item(), len(h)) for h, c in parts if len(h)]
