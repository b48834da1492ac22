"""Every path, driven by the exact denoiser of a language that can be written out (see toys.py for the odds of a false alarm)."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from toys import EXACT, Z, ExactDenoiser, Wide, chi_square_p, final, frequencies, masked, total_variation

from paths import PATHS, jump, limit
from sampler import sample
from scores import mean_and_stderr
from state import State


def test_random_order_one_at_a_time_is_exact():
    """Chi-square at p > 1e-4: one false alarm in 10,000 seeds, and the seed is fixed."""
    toy = ExactDenoiser(V=3, L=3)
    state = final(toy, 20_000, path="random", steps=3)
    assert chi_square_p(frequencies(toy, state.x), 20_000 * toy.p) > 1e-4
    assert (state.nfe == 3).all()
    uniform = torch.full_like(toy.p, 1 / 27)
    assert chi_square_p(frequencies(toy, state.x), 20_000 * uniform) < 1e-10  # the test can fail


def test_a_spread_order_one_at_a_time_is_exact_and_several_at_a_time_lie_far_apart():
    """Chi-square as above. Of 128 tokens, 16 at a time are 5 or more apart, 32 two or more: no smaller multiple of the golden ratio comes
    within 1/8 or 1/4 of a whole number."""
    toy, wide = ExactDenoiser(V=3, L=3), Wide(ExactDenoiser(), 128)
    assert chi_square_p(frequencies(toy, final(toy, 20_000, path="random", order="spread", steps=3).x), 20_000 * toy.p) > 1e-4
    for T, apart in ((8, 5), (4, 2)):
        before = torch.zeros(30, 128, dtype=torch.bool)
        for state in sample(wide, range(30), replace(EXACT, length=128, path="random", order="spread", steps=T)):
            at = (state.clean & ~before).nonzero()
            gaps = (at[1:] - at[:-1])[at[1:, 0] == at[:-1, 0], 1]
            assert not len(gaps) or gaps.min() == apart
            if T == 8 and len(at) and not before.any():  # a position is among the first 16 in 3.75 of 30 texts; in 15 once in 10,000 seeds
                assert len({tuple(row) for row in state.clean.tolist()}) > 20 and state.clean.sum(0).max() < 15
            before = state.clean


@pytest.mark.parametrize("path, order", [("recorded", "spread"), ("recorded", "independent"), ("mend-recorded", "independent")])
def test_of_doubtful_tokens_close_together_only_the_most_doubtful_is_forgotten(path, order):
    """Three wrong tokens side by side and a fourth further on, all others certain: a share that would take them all, in 50 texts."""
    cfg = replace(EXACT, length=16, order=order, eta=3 / 8, gamma=1.0)
    state = State(Wide(ExactDenoiser(), 16), range(50), cfg, masked(Wide(ExactDenoiser(), 16), 16, 50))
    state.x.fill_(1)
    state.snr.fill_(torch.inf)
    state.recorded[:] = torch.tensor([1.0] * 4 + [0.1, 0.0, 0.1, 1.0, 0.05] + [1.0] * 7)
    lost = (PATHS[path](state, 4, 8) == 0).sum(0)
    every = path == "recorded" and order == "independent"
    assert lost[[4, 5, 6, 8]].tolist() == ([50] * 4 if every else [0, 50, 0, 50]) and lost.sum() == (200 if every else 100)


@pytest.mark.parametrize("path, order, apart", [("recorded", "spread", 5), ("remdm-cap", "spread", 5), ("mend-recorded", "independent", 5),
                                                ("recorded", "independent", 1)])
def test_what_is_forgotten_at_once_lies_as_far_apart(path, order, apart):
    """30 whole texts, a step that forgets an eighth of the tokens, all alike at gamma 0: in a spread order 5 or more apart, as those that
    are revealed; where they are independent, some of 30 x 16 are neighbours but once in 10^12 seeds. `mend` spreads them always."""
    cfg = replace(EXACT, length=128, order=order, eta=1 / 8, gamma=0.0)
    state = State(Wide(ExactDenoiser(), 128), range(30), cfg, masked(Wide(ExactDenoiser(), 128), 128, 30))
    state.x.fill_(1)
    state.snr.fill_(torch.inf)
    at = (PATHS[path](state, 6, 8) == 0).nonzero()
    gaps = (at[1:] - at[:-1])[at[1:, 0] == at[:-1, 0], 1]
    assert gaps.min() == apart and abs(len(at) - 480) < Z * (480 * 7 / 8) ** 0.5


@pytest.mark.parametrize("path", ["random", "mdlm"])
def test_where_neighbours_hang_together_a_spread_order_comes_nearer_to_the_language(path):
    """A Markov chain of 6 letters, of whose neighbours a fifth differ, in 3 steps, 4,000 texts: the excess of that share, known to 0.003,
    is at most 0.6 of what it is where positions that are revealed at once are independent (found: a third, 0.4)."""
    toy = ExactDenoiser(V=2, L=6)
    toy.log_p = torch.where(toy.sequences[:, 1:] == toy.sequences[:, :-1], 0.8, 0.2).double().log().sum(1).log_softmax(0)
    texts = (final(toy, 4000, path=path, order=order, steps=3).x for order in ("independent", "spread"))
    independent, spread = ((x[:, 1:] != x[:, :-1]).double().mean().item() - 0.2 for x in texts)
    assert -0.01 < spread < 0.6 * independent


def test_mdlm_draws_both_of_two_tokens_at_once_in_one_of_t_texts():
    """Such a pair is of the product of its marginals, any other exact: chi-square as above. One step late, with all that is left at the
    end, 6 of 16 pairs would come at once and not 4."""
    toy = ExactDenoiser(V=3, L=2, seed=2)
    marginals = toy(toy.embed_ids(torch.full((1, 2), 3)))[0].exp()
    product = (marginals[0][:, None] * marginals[1]).flatten()
    for T, n in ((1, 4000), (4, 40_000)):
        seen = frequencies(toy, final(toy, n, path="mdlm", steps=T).x)
        assert chi_square_p(seen, n * (toy.p + (product - toy.p) / T)) > 1e-4
    assert chi_square_p(seen, n * (toy.p + (product - toy.p) * 6 / 16)) < 1e-10


JUMPS = ("mdlm", "remdm", "remdm-cap", "remdm-rescale", "remdm-conf", "forward-backward", "posterior", "soft", "recorded")


@pytest.mark.parametrize("path, order", [*((path, "independent") for path in JUMPS), ("mdlm", "spread"), ("remdm-cap", "spread")])
def test_jumps_keep_the_revealed_share_at_alpha(path, order):
    """Also where remasks are chosen: clamping at 1 could only break it if one token took the whole budget, and here none does."""
    n, T, L = 300, 10, 24
    toy = ExactDenoiser(V=3, L=2)
    wide = Wide(toy, L)
    states = sample(wide, range(n), replace(EXACT, length=L, path=path, steps=T, eta=0.2, order=order))
    for j, state in enumerate(states):
        share, stderr = mean_and_stderr(state.snr.isinf().double().flatten())
        assert share == j / T if j in (0, T) else abs(share - j / T) < Z * stderr


@pytest.mark.parametrize("path", ["recorded", "posterior", "soft"])
def test_in_a_spread_order_with_much_remasking_the_text_runs_ahead_of_its_schedule(path):
    """As fewer tokens are forgotten than revealing counts on: never behind, at T / 2 ahead by a tenth and more; 300 texts."""
    n, T, L = 300, 10, 24
    states = sample(Wide(ExactDenoiser(), L), range(n), replace(EXACT, length=L, path=path, steps=T, remask_budget=1024, order="spread"))
    for j, state in enumerate(states):
        share, stderr = mean_and_stderr(state.snr.isinf().double().flatten())
        assert share == 1 if j == T else share >= j / T + (0.1 if j == T // 2 else 0) - Z * stderr


@pytest.mark.parametrize("path", ["mend", "mend-recorded"])
def test_mend_writes_a_draft_and_forgets_fewer_tokens_each_time(path):
    """At gamma 0 all are alike: 6 of 10 steps reveal 4 of 24 tokens each, the last of them forgets 0.4 of the 20 that it was shown, and
    each of the others 0.1 less of what it was shown, having written what was missing; of 0.3 and more not all, as no two are less than 3
    apart. 300 texts."""
    n, T, L, shown = 300, 10, 24, 0
    states = sample(Wide(ExactDenoiser(), L), range(n), replace(EXACT, length=L, path=path, steps=T, draft=0.6, gamma=0.0))
    for j, state in enumerate(states):
        missing = (~state.clean).double().sum(1)
        if j < 6:
            assert (missing == L - 4 * j).all()
        else:
            mean, stderr = mean_and_stderr(missing - (T - j) / T * shown)
            assert mean <= Z * stderr if j < 8 else abs(mean) <= Z * stderr
            at = (~state.clean).nonzero()
            gaps = (at[1:] - at[:-1])[at[1:, 0] == at[:-1, 0], 1]
            assert missing.sum() == 0 if j == T else missing.sum() > 0 and (gaps >= 3).all()
        shown = L - missing


def test_sde_approaches_the_language_as_steps_grow():
    """Total variation of 3,000 samples, of exact ones 0.018 +- 0.006, and of any known to 0.5 / sqrt(3000) = 0.009. The posterior mean,
    which says the same to every text, is behind at first, by 0.18. All limits are 5 standard deviations away and more: a false alarm in a
    million seeds, and the seed is fixed."""
    toy, tv = ExactDenoiser(V=3, L=2, seed=3), {}
    for step, bound in (("drawn", 0.06), ("mean", 0.15)):
        tv[step] = [total_variation(toy, final(toy, 3000, path="sde", steps=T, sde_top=8.0, sde_step=step).x) for T in (2, 8, 40)]
        assert tv[step][0] > tv[step][2] + 0.1 and tv[step][1] > tv[step][2] - 0.02
        assert tv[step][2] < bound
    assert tv["mean"][0] > tv["drawn"][0] + 0.1


def test_sde_calls_the_network_once_a_step():
    assert (final(ExactDenoiser(), 5, path="sde", steps=7).nfe == 7).all()
    assert (final(ExactDenoiser(), 5, path="sde", steps=1).nfe == 1).all()


def test_jump_keeps_the_share_for_every_legal_r():
    """From [MASK]: reveal with q. From clean: forget with r. Both in [0, 1], and q is what keeps the share at alpha'; of 1,000 revealed and
    1,000 masked tokens with evenly spread numbers jump moves as many."""
    numbers, clean = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000, torch.tensor([[True], [False]]).expand(2, 1000)
    snr = torch.zeros(2, 1000).masked_fill(clean, torch.inf)
    state = SimpleNamespace(places=lambda what: numbers, clean=clean, revealed=clean, snr=snr)
    for alpha in torch.linspace(0, 0.99, 34, dtype=torch.float64).tolist():
        for alpha_next in torch.linspace(alpha, 1, 12, dtype=torch.float64).tolist():
            for r in torch.linspace(0, limit(alpha, alpha_next), 7, dtype=torch.float64).tolist():
                q = (alpha_next - (1 - r) * alpha) / (1 - alpha)
                assert -1e-12 <= q <= 1 + 1e-12 and 0 <= r <= 1
                stay, reveal = jump(state, alpha, alpha_next, r).isinf().double().mean(1).tolist()
                assert abs(stay - (1 - r)) < 1.1e-3 and abs(reveal - q) < 1.1e-3


def test_jump_has_the_stated_probabilities():
    toy, n = ExactDenoiser(), 20_000
    state = State(toy, range(n), EXACT, masked(toy, 2, n))
    state.snr[:, 0] = torch.inf
    target = jump(state, 0.6, 0.7, 0.2)
    for values, truth in ((target[:, 0] == 0, 0.2), (target[:, 1].isinf(), (0.7 - 0.8 * 0.6) / 0.4)):
        mean, stderr = mean_and_stderr(values.double())
        assert abs(mean - truth) < Z * stderr


def test_the_last_step_asks_the_network_for_nothing_but_draws():
    toy = Wide(ExactDenoiser(), 24)
    state = State(toy, range(4), EXACT, masked(toy, 24, 4))
    state.x[:, :4], state.snr[:, :4] = 1, torch.inf
    PATHS["posterior"](state, 9, 10)
    assert (state.nfe == 0).all()
    PATHS["posterior"](state, 8, 10)
    assert (state.nfe == 1).all()


def test_confidence_is_recorded_when_a_token_is_drawn():
    toy = ExactDenoiser(V=3, L=2)
    states = sample(toy, range(50), replace(EXACT, length=2, path="ar", steps=2))
    next(states)
    marginal = toy(toy.embed_ids(masked(toy, 2)))[0, 0].exp()
    state = next(states)
    assert torch.allclose(state.recorded[:, 0], marginal[state.x[:, 0]]) and (state.recorded[:, 1] == 0).all()


def test_soft_leaves_evidence_and_observes_again():
    toy, seen = Wide(ExactDenoiser(), 24), []
    for state in sample(toy, range(20), replace(EXACT, length=24, path="soft", steps=10, eta=0.3, soft_snr=0.5)):
        noisy = (state.snr > 0) & ~state.clean
        seen.append(noisy.sum().item())
        assert torch.allclose(state.snr[noisy], torch.tensor(0.5 * state.t_c).double())
        assert (state.z[noisy].abs().sum(-1) > 0).all()
    assert max(seen) > 10 and seen[-1] == 0


@pytest.mark.parametrize("path", ["confidence", "random", "ar"])
def test_orders_reveal_an_even_share_and_never_forget(path):
    toy, before = Wide(ExactDenoiser(), 24), None
    for j, state in enumerate(sample(toy, range(4), replace(EXACT, length=24, path=path, steps=6))):
        assert (state.clean.sum(1) == 4 * j).all()
        assert before is None or (state.clean | ~before).all()
        before = state.clean


def test_confidence_reveals_the_surest_and_ar_the_leftmost():
    toy = ExactDenoiser(V=3, L=3, seed=4)
    best = toy(toy.embed_ids(masked(toy, 3)))[0].exp().amax(-1)
    first = State(toy, [0], EXACT, masked(toy, 3))
    assert PATHS["confidence"](first, 0, 3)[0].isinf().tolist() == [i == best.argmax() for i in range(3)]
    assert PATHS["ar"](first, 0, 3)[0].isinf().tolist() == [True, False, False]


def test_confidence_takes_positions_that_are_alike_at_random():
    """A uniform language, 200 texts, 4 of 24 positions at the first step: each is taken 33 times, standard deviation 5; fewer than 10 times
    in 1 of 20,000 seeds. By the last bits, or by position, some never are."""
    toy = ExactDenoiser()
    toy.log_p = torch.full_like(toy.log_p, -math.log(len(toy.log_p)))
    states = sample(Wide(toy, 24), range(200), replace(EXACT, length=24, path="confidence", steps=6))
    taken = next(state.clean.sum(0) for state in states if state.clean.any())
    assert taken.sum() == 800 and taken.min() > 9


def test_ar_and_confidence_one_at_a_time_are_exact():
    """Any order that does not look at what will be drawn is exact; `ar` by chi-square at p > 1e-4, `confidence` as well: its order
    depends on what has been drawn, never on what will be."""
    toy = ExactDenoiser(V=3, L=3, seed=1)
    for path in ("ar", "confidence"):
        assert chi_square_p(frequencies(toy, final(toy, 6000, path=path, steps=3).x), 6000 * toy.p) > 1e-4


def test_hybrid_climbs_then_jumps_and_beats_as_many_jumps_alone():
    """Total variation of 3,000 samples, own noise 0.02: evidence shared by all tokens repairs what few parallel draws break."""
    toy = ExactDenoiser(V=3, L=2, seed=3)
    hybrid = total_variation(toy, final(toy, 3000, path="hybrid", then="mdlm", steps=14, sde_steps=12, sde_top=4.0).x)
    alone = total_variation(toy, final(toy, 3000, path="mdlm", steps=2).x)
    assert hybrid < 0.06 and alone > hybrid + 0.02
    for state in sample(toy, [0], replace(EXACT, length=2, path="hybrid", steps=9, sde_top=4.0)):
        assert state.step not in (1, 2, 3) or torch.allclose(state.snr, torch.tensor(4 * state.t_c * (state.step / 3) ** 2).double())
    assert state.clean.all()
