"""A language small enough to write out: a probability table over V^L sequences, and the denoiser that is exact for it.

A test that compares an estimate with the truth allows |z| < 4.5 standard errors: 7 false alarms in a million comparisons of an honest
estimator, and none at all on a given machine, because every draw is seeded.
"""

import itertools
from dataclasses import replace

import torch

from sampler import sample
from sampler_config import parse_args

Z = 4.5


class ExactDenoiser:
    """p(x_i | evidence) by enumeration, in float64, behind the two doors and the head of model.DSL.

    What flows through the doors is the log-likelihood of each token (B, L, V): <z, e_v> at a finite SNR, 0 for the mask, and 0 or
    -1e9 for a clean token. `wrong` adds that much fixed noise to the logits.
    """

    def __init__(self, V=3, L=2, D=4, seed=0, wrong=0.0):
        g = torch.Generator().manual_seed(seed)
        draw = dict(generator=g, dtype=torch.float64)
        self.V, self.L, self.mask_id = V, L, V
        self.E = torch.nn.functional.normalize(torch.randn(V, D, **draw), dim=-1)
        self.sequences = torch.tensor(list(itertools.product(range(V), repeat=L)))  # (V^L, L)
        self.log_p = (1.5 * torch.randn(V**L, **draw)).log_softmax(0)
        self.noise = wrong * torch.randn(L, V, **draw)

    @property
    def p(self):
        return self.log_p.exp()

    @property
    def entropy(self):
        return -(self.p * self.log_p).sum()

    def draw(self, n, seed=1):
        """n sequences of the language (n, L)."""
        return self.sequences[torch.multinomial(self.p, n, replacement=True, generator=torch.Generator().manual_seed(seed))]

    def index(self, x):
        """The row of the table of each sequence x (n, L)."""
        return (x * self.V ** torch.arange(self.L - 1, -1, -1)).sum(-1)

    def embed_ids(self, x):
        clean = torch.where(torch.nn.functional.one_hot(x, self.V + 1)[..., : self.V] > 0, 0.0, -1e9).double()
        return torch.where((x == self.mask_id)[..., None], 0.0, clean)

    def embed_noisy(self, z):
        return z.double() @ self.E.T

    def joint(self, h):
        """log p(x | evidence) over the whole table: (B, L, V) -> (B, V^L)."""
        evidence = sum(h[:, i, self.sequences[:, i]] for i in range(self.L))
        return (self.log_p + evidence).log_softmax(-1)

    def hidden(self, h):
        joint = self.joint(h)
        columns = [joint[:, self.sequences[:, i] == v].logsumexp(-1) for i in range(self.L) for v in range(self.V)]
        return torch.stack(columns, -1).view(len(h), self.L, self.V).clamp(min=-1e9) + self.noise

    def head(self, h):
        return h

    def __call__(self, h):
        return self.head(self.hidden(h))


def frequencies(toy, x):
    """Counts of each sequence of the table among x (n, L)."""
    return torch.bincount(toy.index(x), minlength=len(toy.p)).double()


def chi_square_p(observed, expected):
    """The probability of counts at least this far from `expected` (cells expected to hold fewer than 5 are pooled)."""
    small = expected < 5
    if small.any():
        observed = torch.cat([observed[~small], observed[small].sum()[None]])
        expected = torch.cat([expected[~small], expected[small].sum()[None]])
    if expected[-1] == 0:  # impossible cells
        assert observed[-1] == 0
        observed, expected = observed[:-1], expected[:-1]
    statistic = ((observed - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2).double(), statistic / 2).item()


def total_variation(toy, x):
    return 0.5 * (frequencies(toy, x) / len(x) - toy.p).abs().sum().item()


# ---- driving the sampler -----------------------------------------------------------------------------------------------------

EXACT = parse_args(["--top_p", "1"])  # no nucleus: the distribution is the denoiser's own


def masked(toy, L, B=1):
    """B templates of L masks."""
    return torch.full((B, L), toy.mask_id)


def final(toy, n, **changes):
    """The last state of n samples."""
    *_, state = sample(toy, range(n), replace(EXACT, length=toy.L, **changes))
    assert state.snr.isinf().all() and (state.x < toy.V).all()
    return state


class Wide:
    """L / 2 independent copies of a toy of length 2, side by side."""

    def __init__(self, toy, L):
        self.toy, self.E, self.mask_id, self.copies = toy, toy.E, toy.mask_id, L // 2
        self.embed_ids, self.embed_noisy, self.head = toy.embed_ids, toy.embed_noisy, toy.head

    def hidden(self, h):
        return self.toy.hidden(h.reshape(-1, 2, self.toy.V)).reshape(h.shape)


def final_ids(toy, path, **changes):
    """20 texts of 24 tokens in 8 steps."""
    *_, state = sample(toy, range(20), replace(EXACT, length=24, path=path, steps=8, **changes))
    return state.x
