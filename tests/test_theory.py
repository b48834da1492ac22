"""The channel, the losses and the bounds against exact posteriors (V 3, L 2-3, float64)."""

import itertools
import math

import pytest
import torch
from toys import Z, ExactDenoiser

from dsl_loss import (SNRMix, add_noise, ar_loss, critical_snr, diffusion_bound, draw_corruption, dsl_ce, dsl_loss, endpoint_snr,
                      is_endpoint, keyed_draws, keyed_generator, lognormal_snr, mdlm_loss, roar_bound, roar_terms, snr_grid, stratified)
from scores import mean_and_stderr


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def gens(n, seed=0):
    return [keyed_generator("cpu", seed, i) for i in range(n)]


def within(values, truth):
    """The mean of independent values is `truth` to within Z standard errors."""
    mean, stderr = mean_and_stderr(values)
    return abs(mean - truth) < Z * stderr


# ---- the posterior needs no time ---------------------------------------------------------------------------------------------


def posterior_with_time(toy, E, z, snr):
    """p(x | z) from the Gaussian density of the channel, with every t written out."""
    mean = snr[..., None, None] * E  # (B, L, V, D)
    log_density = -((z[..., None, :] - mean) ** 2).sum(-1) / (2 * snr[..., None])  # up to a term without v
    return toy.joint(log_density).exp()


def test_posterior_is_free_of_time_on_the_sphere_and_only_there():
    toy = ExactDenoiser(V=4, L=3)
    snr = torch.rand(50, 3, generator=gen(), dtype=torch.float64) * 9 + 0.01
    eps = torch.randn(50, 3, 4, generator=gen(1), dtype=torch.float64)
    x0 = toy.draw(50)
    z = add_noise(toy.E[x0], snr, eps)
    assert (posterior_with_time(toy, toy.E, z, snr) - toy.joint(z @ toy.E.T).exp()).abs().max() < 1e-12
    E = toy.E * torch.tensor([0.7, 1.0, 1.3, 1.6]).double()[:, None]  # norms that differ
    z = add_noise(E[x0], snr, eps)
    assert (posterior_with_time(toy, E, z, snr) - toy.joint(z @ E.T).exp()).abs().max() > 0.1


def test_channel_mean_and_variance():
    e = ExactDenoiser().E[0]
    for snr in (0.3, 7.0):
        z = add_noise(e.expand(100_000, 4), torch.full((100_000,), snr), torch.randn(100_000, 4, generator=gen(), dtype=torch.float64))
        for d in range(4):
            assert within(z[:, d], snr * e[d].item())
            assert within((z[:, d] - snr * e[d]) ** 2, snr)


# ---- the distribution of SNRs ------------------------------------------------------------------------------------------------


def test_snr_mix_has_the_stated_shares_median_and_width():
    mix = SNRMix(endpoint=0.25, common=0.5, median=0.9, sigma=1.2)
    assert [is_endpoint(s, 0.25) for s in range(6)] == [True, False, False, False, True, False]
    assert all(is_endpoint(s, 1.0) and not is_endpoint(s, 0.0) for s in range(9))
    for share in (0.1, 0.3, 0.5, 0.6, 0.95):
        for start in (0, 977, 10**7):
            assert abs(sum(is_endpoint(s, share) for s in range(start, start + 100)) - 100 * share) <= 1
    u, n = keyed_draws(0, range(4000), 16, 1)
    snr = lognormal_snr(u[:, 0], n[..., 0], mix, t_c=10.0)
    common = (snr == snr[:, :1]).all(1)
    assert within(common.double(), 0.5)
    logs = torch.log(snr[~common].double() / 9.0) / 1.2  # standard normal
    assert within(logs.flatten(), 0.0) and within(logs.flatten() ** 2, 1.0)


def test_endpoint_sequences_show_a_uniform_subset_of_a_uniform_size():
    L, n = 4, 24_000
    clean = endpoint_snr(stratified(0, range(n)), keyed_draws(0, range(n), L, None)[0]) > 0
    sizes = torch.bincount(clean.sum(1), minlength=L + 1).double()
    assert sizes[L] == 0 and (sizes[:L] / n - 1 / L).abs().max() < 1e-3  # stratified: far closer than chance
    pairs = clean[clean.sum(1) == 2]  # 6 subsets of 2, equally likely
    subsets = torch.stack([(pairs[:, a] & pairs[:, b]) for a, b in itertools.combinations(range(L), 2)]).double()
    assert all(within(s, 1 / 6) for s in subsets)


def test_corruption_belongs_to_the_sample_and_not_to_its_batch():
    mix = SNRMix(endpoint=0.5)
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # endpoint sequences first
    snr, eps = draw_corruption(3, order, 5, 2, 6.0, mix)
    alone, alone_eps = draw_corruption(3, [5], 5, 2, 6.0, mix)
    assert torch.equal(snr[6], alone[0]) and torch.equal(eps[2], alone_eps[0])
    assert eps.shape == (4, 5, 2) and not snr[:4].isfinite().logical_and(snr[:4] > 0).any() and snr[4:].isfinite().all()


# ---- losses ------------------------------------------------------------------------------------------------------------------


def test_dsl_loss_is_lowest_for_the_exact_denoiser():
    """Of five languages, by 11 standard errors and more, so that 4.5 are missed in one of 10^10 seeds."""
    n, mix = 8000, SNRMix(endpoint=0.5)
    samples = sorted(range(n), key=lambda s: not is_endpoint(s, 0.5))  # half of them endpoint sequences, half localized
    snr, eps = draw_corruption(0, samples, 2, 4, critical_snr(3), mix)
    noise = snr.double(), eps.double()
    for seed in range(5):
        exact, wrong = (ExactDenoiser(seed=seed, wrong=by) for by in (0.0, 0.5))
        x0 = exact.draw(n)
        losses = [dsl_ce(toy, x0, *noise).mean(1) for toy in (wrong, exact)]  # of each sequence, so that differences have a standard error
        mean, stderr = mean_and_stderr(losses[0] - losses[1])
        assert mean > Z * stderr
        assert dsl_loss(exact, x0, *noise)[0].item() == pytest.approx(losses[1].mean().item())
        halves, blind = losses[1].view(2, -1).mean(1), dsl_ce(exact, x0, torch.zeros(n, 2), eps[:0]).mean()
        assert (halves < 0.9 * blind).all()  # both doors show each sequence its own tokens, not those of another


def test_dsl_loss_reads_the_roar_bound_off_its_endpoint_sequences():
    toy = ExactDenoiser(L=3)
    samples = range(4000)
    snr, eps = draw_corruption(0, samples, 3, 4, 1.0, SNRMix(endpoint=1.0))
    x0 = toy.draw(len(samples))
    _, bound = dsl_loss(toy, x0, snr.double(), eps)
    terms = roar_bound(toy, x0, 0, samples)
    assert bound.item() * 3 == pytest.approx(terms.mean().item(), abs=1e-9)
    assert within(terms, toy.entropy.item())


def test_mdlm_loss_enumerated_over_masks_and_times_is_the_nelbo():
    """The integral over t in (0, 1) is of a polynomial of degree L - 1, so four Gauss-Legendre nodes make it exact."""
    toy = ExactDenoiser(L=3)
    nodes = [(0.5 + 0.5 * x, 0.5 * w) for x, w in zip(*gauss_legendre_4())]
    for row in (0, 13, 26):
        x0, total = toy.sequences[row][None], 0.0
        for t, weight in nodes:
            for mask in itertools.product([False, True], repeat=3):
                if any(mask):
                    u = torch.where(torch.tensor([mask]), 0.0, 1.0).double()  # u < t masks
                    loss, _ = mdlm_loss(toy, x0, torch.tensor([t], dtype=torch.float64), u)
                    total += weight * t ** sum(mask) * (1 - t) ** (3 - sum(mask)) * 3 * loss.item()
        assert total == pytest.approx(-toy.log_p[row].item(), abs=1e-10)


def gauss_legendre_4():
    """Nodes and weights on (-1, 1), in closed form."""
    near, far = (3 / 7 - 2 / 7 * 1.2**0.5) ** 0.5, (3 / 7 + 2 / 7 * 1.2**0.5) ** 0.5
    inner, outer = (18 + 30**0.5) / 36, (18 - 30**0.5) / 36
    return (-far, -near, near, far), (outer, inner, inner, outer)


def test_ar_loss_of_a_causal_table():
    """A model that knows p(x_i | x_<i) gives exactly -log p(x)."""
    toy = ExactDenoiser(L=3)

    class Causal:
        mask_id, E, head = toy.mask_id, toy.E, staticmethod(toy.head)

        def embed_ids(self, shifted):
            return shifted

        def hidden(self, shifted):
            seen = torch.cat([shifted[:, 1:], torch.full_like(shifted[:, :1], toy.mask_id)], 1)
            rows = [toy(toy.embed_ids(seen.masked_fill(torch.arange(3) >= i, toy.mask_id)))[:, i] for i in range(3)]
            return torch.stack(rows, 1)

    x0 = toy.draw(20)
    for row in x0:
        assert ar_loss(Causal(), row[None])[0].item() * 3 == pytest.approx(-toy.log_p[toy.index(row)].item(), abs=1e-10)


# ---- bounds ------------------------------------------------------------------------------------------------------------------


def enumerated_roar(toy):
    """The random-order bound of every sequence of the table, over all k and all k-subsets -> (V^L,)."""
    total = 0
    for k in range(toy.L):
        subsets = list(itertools.combinations(range(toy.L), k))
        for shown in subsets:
            clean = torch.zeros(len(toy.p), toy.L, dtype=torch.bool)
            clean[:, list(shown)] = True
            total = total + roar_terms(toy, toy.sequences, clean) / len(subsets) / toy.L
    return total


@pytest.mark.parametrize("V, L", [(3, 2), (4, 3), (3, 4)])
def test_roar_bound_enumerated_is_the_likelihood(V, L):
    toy = ExactDenoiser(V, L)
    assert (enumerated_roar(toy) + toy.log_p).abs().max() < 1e-10
    wrong = ExactDenoiser(V, L, wrong=0.3)
    assert (wrong.p * enumerated_roar(wrong)).sum() > toy.entropy + 0.01


def test_diffusion_bound_at_large_G_is_the_likelihood():
    toy = ExactDenoiser()
    grid = snr_grid(critical_snr(3), cells=24, top=20)
    for index in (0, 4, 8):
        x0 = toy.sequences[index].expand(4000, 2)
        values = diffusion_bound(toy, x0, grid, gens(len(x0), index))
        assert within(values, -toy.log_p[index].item()) and mean_and_stderr(values)[1] < 0.02


def test_diffusion_bound_never_falls_below_the_entropy():
    toy, x0 = ExactDenoiser(), ExactDenoiser().draw(8000)
    gaps = []
    for top in (0.01, 0.3, 1.0, 4.0):
        mean, stderr = mean_and_stderr(diffusion_bound(toy, x0, snr_grid(critical_snr(3), 12, top), gens(len(x0))) - toy.entropy)
        assert mean > -Z * stderr
        gaps.append(mean)
    marginal = sum(-(m * m.log()).sum() for m in toy(toy.embed_ids(torch.full((1, 2), 3)))[0].exp())
    assert gaps[0] == pytest.approx((marginal - toy.entropy).item(), abs=0.05)  # at G = 0 all is reconstruction, factorised
    assert gaps[0] > gaps[-1] + 0.05
    wrong = ExactDenoiser(wrong=0.5)
    bounds = [diffusion_bound(model, x0, snr_grid(critical_snr(3)), gens(len(x0))) for model in (wrong, toy)]
    mean, stderr = mean_and_stderr(bounds[0] - bounds[1])  # the same draws, so only the denoiser differs
    assert mean > Z * stderr


def test_grid_and_critical_snr():
    grid = snr_grid(10.0, cells=8, top=4)
    assert grid[0] == 0 and grid[-1] == 40 and (grid.diff() > 0).all()
    assert critical_snr(math.e) == pytest.approx(2)
    assert keyed_generator("cpu", 1, 2).initial_seed() != keyed_generator("cpu", 1, 3).initial_seed()
