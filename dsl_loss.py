"""The channel, the SNR distributions, the three losses and the two likelihood bounds.

One idea carries the file: every token i has its own signal-to-noise ratio snr_i >= 0, and
    z_i = snr_i e(x_i) + sqrt(snr_i) eps_i.
snr = 0 is [MASK], snr = inf the clean token. Because |e_v| = 1 the posterior p(x | z) depends on z alone (DSL), so one
network without a time input is trained on all of it by plain cross-entropy. Legend of names: model.py. All losses are in nats.
"""

import hashlib
import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

from model import in_chunks, pads

# ---- the channel -------------------------------------------------------------------------------------------------------------


def critical_snr(vocab_size):
    """t_c = 2 ln V: the SNR around which a token is decoded (a position carries about snr/2 nats and needs ln V)."""
    return 2 * math.log(vocab_size)


def add_noise(e, snr, eps):
    """The channel: e, eps (..., D) and finite snr (...) -> z = snr e + sqrt(snr) eps, with mean snr e and variance snr."""
    snr = snr[..., None]
    return snr * e + snr.sqrt() * eps


def forget(z, t, s, eps):
    """Evidence z (..., D) at SNRs t (...) -> at s < t (...), by the channel's own reverse: z_s = (s/t) z_t + sqrt(s (t-s) / t) eps."""
    s, t = s[..., None], t[..., None]
    return s / t * z + (s * (t - s) / t).sqrt() * eps


# ---- random numbers that belong to a sample ----------------------------------------------------------------------------------


def keyed_generator(device, *key):
    """A torch.Generator seeded by the hash of `key`, so that a draw depends on what it is for and not on what was drawn before."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def keyed_draws(seed, samples, length, d_embed, device="cpu"):
    """The random numbers of each sample (a list of ints): u (B, L) uniform and n (B, L, 1+D) normal, for the SNR and eps; n is
    empty if d_embed is None."""
    gens = [keyed_generator(device, seed, int(s)) for s in samples]
    u = [torch.rand(length, generator=g, device=device) for g in gens]
    n = [torch.randn(length, d_embed + 1, generator=g, device=device) for g in gens] if d_embed else []
    return torch.stack(u), torch.stack(n) if n else torch.empty(0, device=device)


def to_device(x, device):
    """A tensor x of the host on the device, without waiting for the work that is queued there: to a GPU from pinned memory."""
    return (x.pin_memory() if torch.device(device).type == "cuda" else x).to(device, non_blocking=True)


def stratified(seed, samples):
    """One uniform number in [0, 1) per sample (B,), float64, spread evenly over any run of consecutive samples (golden-ratio lattice)."""
    offset = torch.rand((), generator=keyed_generator("cpu", seed, "offset"), dtype=torch.float64)
    return (offset + torch.as_tensor(samples, dtype=torch.float64) * ((5**0.5 - 1) / 2)) % 1


# ---- the distribution of SNRs ------------------------------------------------------------------------------------------------


class SNRMix(NamedTuple):
    """How training corrupts sequences. SNRs are in units of t_c, so that the same numbers serve every vocabulary."""

    endpoint: float = 0.5  # share of sequences on a random-order path: each token either clean or masked
    common: float = 0.0  # share of the other sequences whose tokens have one SNR in common
    median: float = 0.9  # of the log-normal
    sigma: float = 1.2  # of the log-normal: standard deviation of ln snr


def is_endpoint(sample, endpoint):
    """Whether a sample is an endpoint sequence: a share `endpoint` of any run of samples, to within one.

    Shares near 0.146, 0.236, 0.382, 0.618, 0.764 and 0.854 are best avoided: they are a few steps of the golden ratio, so that the endpoint
    sequences' `stratified` numbers cover [0, 1) slowly.
    """
    return math.ceil((sample + 1) * endpoint) > math.ceil(sample * endpoint)


def endpoint_snr(alpha, u):
    """A random-order path at a random point: k = floor(alpha L) clean tokens, alpha uniform (B,), u (B, L) uniform -> snr (B, L)."""
    L = u.shape[-1]
    rank = u.argsort(-1).argsort(-1)  # a random permutation of 0..L-1
    clean = rank < to_device((alpha * L).long().clamp(max=L - 1), u.device)[:, None]
    return torch.zeros_like(u).masked_fill(clean, torch.inf)


def lognormal_snr(u, n, mix, t_c):
    """Localized sequences: u (B,) uniform decides which have one SNR in common, n (B, L) normal -> snr (B, L) > 0, finite."""
    n = torch.where((u < mix.common)[:, None], n[:, :1], n)
    return t_c * mix.median * torch.exp(mix.sigma * n)


def draw_corruption(seed, samples, length, d_embed, t_c, mix, device="cpu"):
    """The corruption of `samples`, which name endpoint sequences first -> snr (B, L), eps (B - endpoints, L, D) for `dsl_loss`."""
    n_end = sum(is_endpoint(s, mix.endpoint) for s in samples)
    assert all(is_endpoint(s, mix.endpoint) for s in samples[:n_end]), "endpoint sequences must come first"
    rows = []
    if n_end:
        u, _ = keyed_draws(seed, samples[:n_end], length, None, device)
        rows.append(endpoint_snr(stratified(seed, samples[:n_end]), u))
    if n_end == len(samples):
        return rows[0], torch.empty(0, length, d_embed, device=device)
    u, n = keyed_draws(seed, samples[n_end:], length, d_embed, device)
    rows.append(lognormal_snr(u[:, 0], n[..., 0], mix, t_c))
    return torch.cat(rows), n[..., 1:]


# ---- losses: each returns (loss to minimise, bound), both scalars in nats per token; bound is an estimate of the NLL's bound ----


def token_ce(logits, x0):
    """Cross-entropy of each token in float32 (or wider): logits (..., V), x0 (...) -> (...) nats."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits.flatten(0, -2), x0.flatten(), reduction="none").view_as(x0)


def feature_ce(model, h, x0):
    """As token_ce(model.head(h), x0), from features h (B, L, C), without holding the logits of all tokens at once."""
    head = model.padded_head() if pads(h) else model.head
    ce = in_chunks(lambda h, x: token_ce(head(h), x), model.mask_id, h.flatten(0, 1), x0.flatten())
    return ce.view_as(x0)


def shown_ce(model, x, x0):
    """Cross-entropy (B, L) of every token of x0 where the network is shown the ids x (B, L): tokens as they are, or the mask."""
    return feature_ce(model, model.hidden(model.embed_ids(x)), x0)


def masked_mean(ce, masked):
    """Mean of ce (B, L) over the masked positions of each sequence -> (B,)."""
    return (ce * masked).sum(-1) / masked.sum(-1)


def dsl_ce(model, x0, snr, eps):
    """Cross-entropy (B, L) of every token. The first B - len(eps) sequences are endpoint ones (snr 0 or inf everywhere, fed by lookup);
    the others have finite SNRs and noise eps (B', L, D)."""
    n_end = len(x0) - len(eps)
    h = []
    if n_end:
        h.append(model.embed_ids(torch.where(snr[:n_end] > 0, x0[:n_end], model.mask_id)))
    if len(eps):
        h.append(model.embed_noisy(add_noise(F.embedding(x0[n_end:], model.E), snr[n_end:], eps)))
    dtype = h[0].dtype
    return feature_ce(model, model.hidden(torch.cat([part.to(dtype) for part in h])), x0)


def dsl_loss(model, x0, snr, eps):
    """Cross-entropy at every position, unweighted (DSL): a proper score, minimised by the exact posterior at every SNR.

    Arguments as in `dsl_ce`. The bound is the ROAR bound, estimated from the endpoint sequences (nan without any).
    """
    ce, n_end = dsl_ce(model, x0, snr, eps), len(x0) - len(eps)
    return ce.mean(), masked_mean(ce[:n_end], snr[:n_end] == 0).mean().detach()


def mdlm_loss(model, x0, t, u):
    """MDLM's NELBO per token: mask each token with probability t (B,), weight the masked ones by 1/t (MDLM, equation 10).

    u (B, L) uniform decides the masks. A token that is shown carries over and costs nothing; the mask is never predicted.
    """
    masked = u < t[:, None]
    ce = shown_ce(model, torch.where(masked, model.mask_id, x0), x0)
    loss = (ce * masked / t[:, None]).mean()
    return loss, loss.detach()


def shifted(x, mask_id):
    """What an autoregressive model is shown at each position of x (B, L): the token before it; the mask where there is none."""
    return torch.cat([torch.full_like(x[:, :1], mask_id), x[:, :-1]], 1)


def ar_ce(model, x0):
    """Cross-entropy (B, L) of every token given those before it."""
    return shown_ce(model, shifted(x0, model.mask_id), x0)


def ar_loss(model, x0):
    """Next-token cross-entropy of a causal model over all L tokens: exactly -log p(x0) / L."""
    loss = ar_ce(model, x0).mean()
    return loss, loss.detach()


# ---- likelihood bounds: nats per sequence (B,); divide by L ln 2 for bits per token ------------------------------------------


def roar_terms(model, x0, clean):
    """One term of the random-order bound: with the tokens `clean` (B, L) shown, L times the mean cross-entropy of the others -> (B,).

    Its mean over k ~ U{0..L-1} and random k-subsets is at least -log p(x0), with equality for the exact denoiser: MDLM's NELBO.
    """
    ce = shown_ce(model, torch.where(clean, x0, model.mask_id), x0)
    return x0.shape[1] * masked_mean(ce, ~clean)


def roar_bound(model, x0, seed, samples):
    """The random-order bound with one (k, subset) per sequence, stratified over `samples` -> (B,)."""
    u, _ = keyed_draws(seed, samples, x0.shape[1], None, x0.device)
    return roar_terms(model, x0, endpoint_snr(stratified(seed, samples), u) > 0)


def snr_grid(t_c, cells=24, top=4.0):
    """Edges (cells + 1,) of the diffusion bound's integral over [0, G = top t_c]; fixed before any data is seen, denser at low SNR."""
    return t_c * top * torch.linspace(0, 1, cells + 1, dtype=torch.float64) ** 2


def diffusion_bound(model, x0, grid, generators):
    """-log p(x) <= 1/2 int_0^G E|e_x - e_hat(z_t)|^2 dt + E sum_i CE_i(z_G), all tokens at one SNR -> (B,) unbiased estimates.

    Each cell of `grid` (from 0 to G) gets one uniform t, so the sum is unbiased for any integrand and any cells: the grid and G must only
    not depend on the data. Choosing G per example from noisy estimates would bias the bound low. `generators` has one per sequence.
    """
    e = F.embedding(x0, model.E)

    def draw(kind, *shape):
        return torch.stack([kind(shape, generator=g, device=x0.device, dtype=e.dtype) for g in generators])

    def features_at(snr):  # (B,) -> (B, L, C)
        return model.hidden(model.embed_noisy(add_noise(e, snr[:, None].expand(x0.shape), draw(torch.randn, *e.shape[1:]))))

    def mean_embedding(h):  # (n, C) -> (n, D)
        return model.head(h).to(e.dtype).softmax(-1) @ model.E

    total = torch.zeros(len(x0), device=x0.device, dtype=e.dtype)
    for low, high in zip(grid[:-1].tolist(), grid[1:].tolist()):
        h = features_at(low + (high - low) * draw(torch.rand))
        e_hat = in_chunks(mean_embedding, len(model.E), h.flatten(0, 1)).view_as(e)
        total += (high - low) / 2 * (e - e_hat).square().sum((1, 2))
    return total + feature_ce(model, features_at(torch.full_like(total, float(grid[-1]))), x0).sum(1)
