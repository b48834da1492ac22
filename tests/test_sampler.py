"""Every path, driven by the exact denoiser of a language that can be written out (see toys.py for the odds of a false alarm)."""

from dataclasses import replace

import pytest
import torch
from toys import Z, ExactDenoiser, chi_square_p, frequencies, total_variation

from config import Problem
from dsl_loss import add_noise, critical_snr, mean_and_stderr
from sampler import PATH_NAMES, PATHS, State, draw, load_for_sampling, parse_args, picture, sample, sample_categorical, top_p

EXACT = parse_args(["--top_p", "1"])  # no nucleus: the distribution is the denoiser's own


def final(toy, n, **changes):
    """The last state of n samples."""
    *_, state = sample(toy, range(n), replace(EXACT, length=toy.L, **changes))
    assert state.snr.isinf().all() and (state.x < toy.V).all()
    return state


def test_random_order_one_at_a_time_is_exact():
    """Chi-square at p > 1e-4: one false alarm in 10,000 seeds, and the seed is fixed."""
    toy = ExactDenoiser(V=3, L=3)
    state = final(toy, 20_000, path="random", steps=3)
    assert chi_square_p(frequencies(toy, state.x), 20_000 * toy.p) > 1e-4
    assert (state.nfe == 3).all()
    uniform = torch.full_like(toy.p, 1 / 27)
    assert chi_square_p(frequencies(toy, state.x), 20_000 * uniform) < 1e-10  # the test can fail


def test_mdlm_with_many_steps_is_nearly_exact_and_with_one_is_not():
    toy = ExactDenoiser(V=3, L=2, seed=2)
    marginals = toy(toy.embed_ids(torch.full((1, 2), 3)))[0].exp()
    product = (marginals[0][:, None] * marginals[1]).flatten()
    assert chi_square_p(frequencies(toy, final(toy, 4000, path="mdlm", steps=1).x), 4000 * product) > 1e-4
    assert 0.5 * (product - toy.p).abs().sum() > 0.1
    assert total_variation(toy, final(toy, 4000, path="mdlm", steps=48).x) < 0.03  # 0.01 of bias, 0.01 of noise


@pytest.mark.parametrize("path", ["mdlm", "remdm-cap", "posterior"])
def test_jumps_keep_the_revealed_share_at_alpha(path):
    """`posterior` too: clamping at 1 could only break it if one token took more than the whole budget, and here it does not."""
    n, T, L = 300, 10, 24
    toy = ExactDenoiser(V=3, L=2)
    wide = Wide(toy, L)
    states = sample(wide, range(n), replace(EXACT, length=L, path=path, steps=T, eta=0.2))
    for j, state in enumerate(states):
        share, stderr = mean_and_stderr(state.snr.isinf().double().flatten())
        assert share == j / T if j in (0, T) else abs(share - j / T) < Z * stderr


class Wide:
    """L / 2 independent copies of a toy of length 2, side by side."""

    def __init__(self, toy, L):
        self.toy, self.E, self.mask_id, self.copies = toy, toy.E, toy.mask_id, L // 2
        self.embed_ids, self.embed_noisy, self.head = toy.embed_ids, toy.embed_noisy, toy.head

    def hidden(self, h):
        return self.toy.hidden(h.reshape(-1, 2, self.toy.V)).reshape(h.shape)


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
    assert torch.equal(a, final_ids(toy, "remdm-cap", eta=1e-300))
    assert torch.equal(a, final_ids(toy, "posterior", eta=1e-300))
    assert not torch.equal(a, final_ids(toy, "remdm-cap", eta=0.3))


def final_ids(toy, path, **changes):
    *_, state = sample(toy, range(20), replace(EXACT, length=24, path=path, steps=8, **changes))
    return state.x


def test_posterior_forgets_what_the_denoiser_doubts():
    """Two tokens that always agree: shown a pair that differs and six that agree, only the first can be wrong."""
    toy = ExactDenoiser(V=3, L=2)
    toy.log_p = torch.full((9,), -12.0, dtype=torch.float64)
    toy.log_p[[0, 4, 8]] = 0.0
    toy.log_p -= toy.log_p.logsumexp(0)
    counts = torch.zeros(8)
    for seed in range(200):
        state = State(Wide(Soft(toy), 8), [0], 8, replace(EXACT, seed=seed, eta=0.2, gamma=1.0))
        state.x[0] = torch.tensor([0, 1, 1, 1, 2, 2, 0, 0])
        state.snr.fill_(torch.inf)
        state.step, T = 6, 10
        counts += PATHS["posterior"](state, T)[0] == 0
    assert counts[:2].sum() > 100 and counts[2:].sum() < 0.05 * counts[:2].sum()
    assert abs(counts.sum() / 200 - 8 * 0.2) < Z * (8 * 0.2 / 200) ** 0.5  # the budget is r times the revealed tokens


class Soft:
    """The toy seen through a noisy door: clean tokens are shown at an SNR that leaves room for doubt."""

    def __init__(self, toy):
        self.E, self.mask_id, self.V, self.head, self.hidden = toy.E, toy.mask_id, toy.V, toy.head, toy.hidden
        self.embed_noisy, self.embed_ids = toy.embed_noisy, lambda x: toy.embed_ids(x).clamp(min=-3.0)


@pytest.mark.parametrize("step, limit", [("drawn", 0.06), ("mean", 0.15)])
def test_sde_approaches_the_language_as_steps_grow(step, limit):
    """Total variation of 3,000 samples; its own noise is about 0.02 for 9 sequences."""
    toy = ExactDenoiser(V=3, L=2, seed=3)
    tv = [total_variation(toy, final(toy, 3000, path="sde", steps=T, sde_top=8.0, sde_step=step).x) for T in (2, 8, 40)]
    assert tv[0] > tv[2] + 0.1 and tv[1] > tv[2] - 0.02
    assert tv[2] < limit


def test_sde_calls_the_network_once_a_step():
    assert (final(ExactDenoiser(), 5, path="sde", steps=7).nfe == 7).all()


def test_forget_is_the_channel_at_the_lower_snr():
    toy, n = ExactDenoiser(), 40_000
    for start in (6.0, torch.inf):
        state = State(toy, range(n), 1, EXACT)
        token = torch.ones(n, 1, dtype=torch.long)
        state.snr.fill_(start)
        if start == torch.inf:
            state.x = token
        else:
            state.z = add_noise(toy.E[token], state.snr, torch.randn(n, 1, 4, generator=torch.Generator().manual_seed(0)).double())
        state.forget(torch.ones(n, 1, dtype=torch.bool), torch.full((n, 1), 1.5).double())
        assert (state.snr == 1.5).all() and (state.x == toy.mask_id).all()
        for d in range(4):
            for values, truth in ((state.z[:, 0, d], 1.5 * toy.E[1, d].item()),
                                  ((state.z[:, 0, d] - 1.5 * toy.E[1, d]) ** 2, 1.5)):
                mean, stderr = mean_and_stderr(values)
                assert abs(mean - truth) < Z * stderr


def test_forgetting_everything_is_the_mask():
    toy = ExactDenoiser()
    state = State(toy, [0], 2, EXACT)
    state.x, state.snr = torch.tensor([[0, 2]]), torch.full((1, 2), torch.inf).double()
    state.forget(torch.tensor([[True, False]]), torch.zeros(1, 2).double())
    assert state.x.tolist() == [[3, 2]] and state.snr.tolist() == [[0, torch.inf]] and (state.z == 0).all()


# ---- drawing -----------------------------------------------------------------------------------------------------------------


def test_sample_categorical_has_the_stated_frequencies_and_keeps_the_tail():
    p = torch.tensor([0.5, 0.3, 0.2, 0.0, 1e-12])
    u = torch.rand(50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.bincount(sample_categorical(p.expand(len(u), 5), u), minlength=5)
    assert chi_square_p(counts[:3].double(), 50_000 * p[:3].double()) > 1e-4
    assert counts[3] == 0
    assert sample_categorical(p[None], torch.tensor([1 - 1e-13]).double()) == 4  # lost in float32: 1 - 1e-13 would be 1
    assert sample_categorical(p[None], torch.tensor([0.0]).double()) == 0


def test_top_p_keeps_the_token_that_crosses_p():
    probs = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).double()
    assert (top_p(probs, 0.6) > 0).tolist() == [[False, True, False, True]]
    assert (top_p(probs, 0.5) > 0).tolist() == [[False, True, False, False]]
    assert (top_p(probs, 0.01) > 0).tolist() == [[False, True, False, False]]
    assert torch.equal(top_p(probs, 1.0), probs)


def test_temperature():
    logits, u = torch.tensor([[0.0, 1.0, 0.5]]).expand(20_000, 3), torch.rand(20_000, generator=torch.Generator().manual_seed(1)).double()
    assert (draw(logits, u, 0, 1.0) == 1).all()
    counts = torch.bincount(draw(logits, u, 0.5, 1.0), minlength=3).double()
    assert chi_square_p(counts, 20_000 * (logits[0].double() / 0.5).softmax(0)) > 1e-4


# ---- the same text whatever its company; the network only where it is needed ---------------------------------------------------


@pytest.mark.parametrize("path", PATH_NAMES)
def test_texts_depend_on_seed_and_index_alone(path):
    toy = Wide(ExactDenoiser(), 24)
    cfg = replace(EXACT, length=24, path=path, steps=6)

    def ids(samples, cfg=cfg):
        *_, state = sample(toy, samples, cfg)
        return state.x

    together = ids(range(5))
    assert torch.equal(together, torch.cat([ids([0, 1]), ids([2, 3, 4])]))
    assert torch.equal(together[3:4], ids([3]))
    assert not torch.equal(together, ids(range(5), replace(cfg, seed=1)))


def test_an_idle_step_costs_no_call():
    """With more steps than tokens most steps reveal nothing; a text then keeps its features, whatever its neighbours do."""
    toy, calls = ExactDenoiser(), []
    counting = ExactDenoiser()
    counting.hidden = lambda h: calls.append(len(h)) or toy.hidden(h)
    state = final(counting, 50, path="mdlm", steps=30)
    assert state.nfe.max() <= 2 and sum(calls) == state.nfe.sum()
    assert torch.equal(state.x, final(toy, 50, path="mdlm", steps=30).x)


def test_a_path_of_ones_own():
    """Left to right, two tokens a step: what the README shows."""
    def left_to_right(state, T):
        position = torch.arange(state.x.shape[1])
        return torch.where(position < (state.step + 1) * state.x.shape[1] / T, torch.inf, state.snr)

    toy, seen = Wide(ExactDenoiser(), 8), []
    for state in sample(toy, range(3), replace(EXACT, length=8, steps=4), left_to_right):
        seen.append(state.snr.isinf().sum(1).tolist())
    assert seen == [[0] * 3, [2] * 3, [4] * 3, [6] * 3, [8] * 3]


def test_picture_shows_masks_noise_and_line_ends():
    from data import tokenizer

    state = State(ExactDenoiser(V=12), [0], 4, EXACT)
    state.x, state.snr = torch.tensor([[12, 12, 10, 9]]), torch.tensor([[0.0, 2.0, torch.inf, torch.inf]])
    assert picture(state, 0, tokenizer("bytes")) == "░▒¶\t"


# ---- the command line --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["--steps 0", "--top_p 0", "--top_p 1.5", "--num_samples 0", "--path nowhere", "--eta 2", "--steps x"])
def test_bad_flags_are_usage_errors_of_one_line(flags, capsys):
    with pytest.raises(SystemExit) as error:
        parse_args(flags.split())
    assert error.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_no_checkpoint_says_what_to_run(tmp_path):
    with pytest.raises(Problem, match="make demo"):
        load_for_sampling(parse_args(["--ckpt", str(tmp_path / "none.pt")]))


def test_critical_snr_of_the_demo():
    assert critical_snr(257) == pytest.approx(11.1, abs=0.01)
