"""How much each path forgets, and what: driven by the exact denoiser of toys.py (which states the odds of a false alarm)."""

from dataclasses import replace

import pytest
import torch
from toys import EXACT, Z, ExactDenoiser, Wide, final_ids, masked

from paths import PATHS
from sampler import sample
from scores import mean_and_stderr
from state import State


def written(toy, n, L, **changes):
    """The state of n whole texts of L tokens."""
    state = State(toy, range(n), replace(EXACT, **changes), masked(toy, L, n))
    state.x.fill_(1)
    state.snr.fill_(torch.inf)
    return state


def test_remdm_remasks_and_mdlm_does_not():
    toy = Wide(ExactDenoiser(), 24)
    for path, expected in (("mdlm", False), ("remdm-cap", True), ("posterior", True)):
        lost, before = 0, None
        for state in sample(toy, range(20), replace(EXACT, length=24, path=path, steps=10, eta=0.2)):
            lost += 0 if before is None else (before & (state.snr == 0)).sum().item()
            before = state.snr.isinf()
        assert (lost > 0) == expected


def test_remdm_without_remasking_is_mdlm_draw_for_draw():
    toy = Wide(ExactDenoiser(), 24)
    a = final_ids(toy, "mdlm")
    for path in ("remdm", "remdm-cap", "remdm-rescale", "posterior", "soft", "recorded"):
        assert torch.equal(a, final_ids(toy, path, eta=1e-300)), path
        assert not torch.equal(a, final_ids(toy, path, eta=0.3)), path
    for path in ("posterior", "soft", "recorded"):  # R = 2.4 remasks of 8 steps
        assert torch.equal(final_ids(toy, path, remask_budget=2.4), final_ids(toy, path, eta=0.3)), path


@pytest.mark.parametrize("path, j, eta, rate", [
    ("mdlm", 5, 0.5, 0), ("remdm-cap", 5, 0.5, 0.5), ("remdm-cap", 8, 0.5, 1 / 8), ("remdm-cap", 5, 0, 0.04),
    ("remdm-rescale", 5, 0.5, 0.4), ("remdm-rescale", 8, 0.5, 1 / 16), ("remdm-rescale", 5, 0, 0.032),
    ("forward-backward", 2, 0.1, 1 / 2), ("forward-backward", 5, 0.1, 1 / 5),
    ("remdm-loop", 4, 0.05, 0), ("remdm-loop", 5, 0.05, 0.05), ("remdm-loop", 5, 0.5, 1 / 9), ("remdm-loop", 9, 0.05, 0),
    ("recorded", 5, 0.3, 0.3), ("recorded", 8, 0.3, 1 / 8), ("recorded", 5, 0, 0.4)])
def test_a_path_forgets_its_own_share(path, j, eta, rate):
    """At step j of 10, of 200 whole texts of 50 tokens, all alike at gamma 0. r_max = min(1, (1 - alpha') / alpha) is 0.8 at j = 5, 1/8 at
    8 and, where loop stands still at alpha 0.9, 1/9; the forward process forgets (alpha' - alpha) / alpha; without eta, R / T is 4 / 10."""
    state = written(Wide(ExactDenoiser(), 50), 200, 50, eta=eta, gamma=0.0)
    share = (PATHS[path](state, j, 10) == 0).double().mean().item()
    assert abs(share - rate) <= Z * (rate * (1 - rate) / 10_000) ** 0.5


def test_loop_stands_still_at_alpha_on():
    """Mdlm to 0.9 at time 0.55, there remasking at 0.9, and from time 0.05 on to 1."""
    L, T, n, shares = 24, 100, 400, []
    lost, before = [], None
    for state in sample(Wide(ExactDenoiser(), L), range(n), replace(EXACT, length=L, path="remdm-loop", steps=T, eta=0.1)):
        shares.append(state.clean.double().mean().item())
        lost.append(0 if before is None else (before & ~state.clean).sum().item())
        before = state.clean
    noise = Z * (0.9 * 0.1 / (n * L)) ** 0.5
    assert all(abs(share - 0.9) < noise for share in shares[45:95]) and abs(shares[22] - 0.44) < 2 * noise and shares[-1] == 1
    assert sum(lost[:46]) == sum(lost[96:]) == 0 and all(lost[47:95])


def test_remdm_takes_its_published_settings():
    toy = Wide(ExactDenoiser(), 24)
    assert torch.equal(final_ids(toy, "remdm"), final_ids(toy, "remdm-cap", eta=0.04))
    *_, loop = sample(toy, range(5), replace(EXACT, length=24, path="remdm-loop", steps=30, eta=0.02))
    *_, named = sample(toy, range(5), replace(EXACT, length=24, path="remdm", steps=30))
    assert torch.equal(loop.x, named.x)


def test_posterior_forgets_what_the_denoiser_doubts():
    """Two tokens that always agree: shown a pair that differs and six that agree, only the first can be wrong; a fifth pair is not written
    yet. Of 8 written ones r = 0.2 is 1.6, of 7 or 10 it would be 1.4 or 2: in 1,000 texts known to 0.02, so that 4.5 of its standard
    errors tell them apart."""
    toy = ExactDenoiser(V=3, L=2)
    toy.log_p = torch.full((9,), -12.0, dtype=torch.float64)
    toy.log_p[[0, 4, 8]] = 0.0
    toy.log_p -= toy.log_p.logsumexp(0)
    state = written(Wide(Soft(toy), 10), 1000, 10, eta=0.2, gamma=1.0)
    state.x[:] = torch.tensor([0, 1, 1, 1, 2, 2, 0, 0, 3, 3])
    state.snr[:, 8:] = 0.0
    lost = state.clean & (PATHS["posterior"](state, 6, 10) == 0)
    assert lost[:, :2].sum() > 500 and lost[:, 2:].sum() < 0.05 * lost[:, :2].sum()
    mean, stderr = mean_and_stderr(lost.sum(1))
    assert abs(mean - 1.6) < Z * stderr < 0.15


class Soft:
    """The toy seen through a noisy door: clean tokens are shown at an SNR that leaves room for doubt."""

    def __init__(self, toy):
        self.E, self.mask_id, self.V, self.head, self.hidden = toy.E, toy.mask_id, toy.V, toy.head, toy.hidden
        self.embed_noisy, self.embed_ids = toy.embed_noisy, lambda x: toy.embed_ids(x).clamp(min=-3.0)


def test_conf_and_recorded_forget_the_least_confident():
    counts = {}
    for path in ("remdm-conf", "recorded"):
        state = written(Wide(ExactDenoiser(), 8), 300, 8, eta=0.2, gamma=1.0)
        state.recorded[:] = torch.tensor([0.1] + [0.9] * 7)
        counts[path] = (PATHS[path](state, 6, 10) == 0).sum(0)
    r_max = 0.3 / 0.6
    share = torch.tensor([-0.1] + [-0.9] * 7).softmax(0)[0].item()
    assert abs(counts["remdm-conf"][0] / 300 - r_max * share) < Z * (r_max * share / 300) ** 0.5
    assert abs(counts["recorded"][0] / 300 - 0.2 * 8 * 0.9 / 1.6) < Z * (0.9 * 0.1 / 300) ** 0.5
    assert counts["recorded"][0] > 5 * counts["recorded"][1:].max()


@pytest.mark.parametrize("gamma, first", [(0.0, 1 / 8), (1.0, 0.3), (2.0, 9 / 16)])
def test_tokens_are_forgotten_in_proportion_to_a_power_of_their_doubt(gamma, first):
    """Doubts of 0.6 and seven times 0.2, of which the first has 0.6^gamma / (0.6^gamma + 7 x 0.2^gamma); 0.8 tokens of each of 2,000 texts,
    so that none is asked for more than once."""
    state = written(Wide(ExactDenoiser(), 8), 2000, 8, eta=0.1, gamma=gamma)
    state.recorded[:] = torch.tensor([0.4] + [0.8] * 7)
    lost = (PATHS["recorded"](state, 6, 10) == 0).double()
    for values, truth in ((lost[:, 0], 0.8 * first), (lost[:, 1:].mean(1), 0.8 * (1 - first) / 7)):
        mean, stderr = mean_and_stderr(values)
        assert abs(mean - truth) < Z * stderr < 0.06


def test_a_sure_model_still_spends_its_budget():
    """With every token nearly certain and gamma 8 the shares would underflow if they were not taken in logarithms."""
    state = written(Wide(ExactDenoiser(), 24), 100, 24, eta=0.2, gamma=8.0)
    for p in (1.0, 1 - 1e-7):
        state.recorded.fill_(p)
        assert abs((PATHS["recorded"](state, 6, 10) == 0).sum() - 480) < Z * (480 * 0.8) ** 0.5
