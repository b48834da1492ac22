"""Validation: likelihood bounds in bits per byte, and the loss by SNR. Windows are shared out over the ranks."""

import math
from statistics import NormalDist

import torch
from tqdm import tqdm

from config import Problem
from data import load_tokens, val_windows
from dsl_loss import SNRMix, ar_ce, critical_snr, diffusion_bound, draw_corruption, dsl_ce, keyed_generator, roar_bound, snr_grid
from runtime import gather
from scores import mean_and_stderr

SNR_BINS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, math.inf)  # edges in units of t_c, for reading where a model learns


def bits_per_byte(meta, split, nats_per_token):
    """Nats per token of a split -> bits per byte of its text: EOS tokens are paid for, though they are no byte."""
    return nats_per_token / math.log(2) * meta[split]["tokens"] / meta[split]["bytes"]


def require_windows(cfg):
    """Raise Problem where a split is too short, before the training, not after: a standard error of `diffusion` takes 17 windows."""
    for split, file, needed in (("training", "train", 1), ("validation", "val", 17)):
        found = len(load_tokens(cfg.dataset, file, cfg.data_dir)) // cfg.text_length
        if found < needed:
            raise Problem(f"{cfg.dataset}'s {split} split has {found} windows of {cfg.text_length} tokens and {needed} are needed: prepare "
                          "a longer text, or use a shorter --length")


def per_window(name, term, windows, rank, world, device, batch):
    """term(x0 (B, L), their numbers) -> (B, ...), over this rank's share of `windows`, gathered from all ranks -> (N, ...)."""
    mine = range(rank, len(windows), world)
    parts = [mine[i : i + batch] for i in range(0, len(mine), batch)]
    rows = [term(windows[part].to(device), part) for part in tqdm(parts, f"validation, {name}", leave=False, disable=rank > 0)]
    return gather(torch.cat(rows) if rows else torch.empty(0))


def ce_by_snr(ce, snr, t_c):
    """Sort per-token losses by SNR: ce, snr (B, L) -> {"masked", "clean", "0-0.25", ...: (mean, standard error)}, SNRs in units of t_c.

    The errors take tokens for independent, so they are somewhat too small.
    """
    bins = {"masked": snr == 0, "clean": snr.isinf()}
    for low, high in zip(SNR_BINS, SNR_BINS[1:]):
        bins[f"{low:g}-{high:g}"] = (snr > low * t_c) & (snr <= high * t_c) & snr.isfinite()
    return {name: mean_and_stderr(ce[where]) for name, where in bins.items() if where.sum() > 1}


@torch.no_grad()
def evaluate(cfg, model, meta, device, rank=0, world=1):
    """Bounds on the validation text in bits per byte, each as (mean, standard error), and the loss by SNR in nats per token.

    `roar` on eval_windows windows, `diffusion` on every 16th of them (it costs 25 calls; of MDLM, which never saw evidence, a loose one),
    `by_snr` on every 4th; for an AR model the exact `nll`. Every rank returns the same.
    """
    eos = meta["eos"] if cfg.frame_eos else None
    windows = torch.from_numpy(val_windows(load_tokens(cfg.dataset, "val", cfg.data_dir), cfg.length, cfg.eval_windows, eos))
    t_c = critical_snr(meta["vocab_size"])

    def share(term, rows, name):
        return per_window(name, term, rows, rank, world, device, min(64, cfg.micro_batch or 64))

    def in_bits(nats):
        return mean_and_stderr(bits_per_byte(meta, "val", nats / cfg.text_length))

    if cfg.objective == "ar":
        return {"nll": in_bits(share(lambda x0, _: ar_ce(model, x0).sum(1), windows, "likelihood"))}
    scores = {
        "roar": in_bits(share(lambda x0, n: roar_bound(model, x0, "val", n), windows, "random-order bound")),
        "diffusion": in_bits(share(lambda x0, n: diffusion_bound(model, x0, snr_grid(t_c), [keyed_generator(device, "val", i) for i in n]),
                                   windows[::16], "diffusion bound")),
    }
    if cfg.objective == "dsl":

        def ce_and_snr(x0, numbers):
            both = []
            for endpoint in (1.0, 0.0):
                mix = SNRMix(endpoint, cfg.common, cfg.snr_median, cfg.snr_sigma)
                snr, eps = draw_corruption("val", numbers, cfg.length, cfg.d_embed, t_c, mix, device)
                both.append(torch.stack([dsl_ce(model, x0, snr, eps), snr], 1))
            return torch.cat(both)

        scores["by_snr"] = ce_by_snr(*share(ce_and_snr, windows[::4], "loss by SNR").unbind(1), t_c)
    return scores


def own_loss(scores, cfg):
    """The validation value of the loss that a run `cfg` minimises, from its `scores`: of MDLM's the random-order bound in bits per byte, of
    DSL's the mean cross-entropy over its mixture, in nats per token, put together from the bins of `by_snr` by their shares in training."""
    if cfg.objective != "dsl":
        return scores["roar" if cfg.objective == "mdlm" else "nll"][0]
    ce = {name: mean for name, (mean, _) in scores["by_snr"].items()}
    log_normal, masked = NormalDist(math.log(cfg.snr_median), max(cfg.snr_sigma, 1e-9)), (cfg.length + 1) / (2 * cfg.length)
    below = [log_normal.cdf(math.log(edge)) if edge else 0.0 for edge in SNR_BINS[:-1]] + [1.0]
    shares = {f"{low:g}-{high:g}": b - a for low, high, a, b in zip(SNR_BINS, SNR_BINS[1:], below, below[1:])}
    found = {name: share for name, share in shares.items() if name in ce}  # few windows may leave a rare bin empty
    local = sum(share * ce[name] for name, share in found.items()) / (sum(found.values()) or 1.0)
    return cfg.endpoint * (masked * ce["masked"] + (1 - masked) * ce["clean"]) + (1 - cfg.endpoint) * local


def describe(scores, windows):
    """The scores in a few lines for a reader."""
    bounds = ", ".join(f"{name} {scores[name][0]:.3f} +- {scores[name][1]:.3f}" for name in scores if name != "by_snr")
    lines = [f"validation, up to {windows:,} windows, bits per byte: {bounds}"]
    if "by_snr" in scores:
        bins = ", ".join(f"{name}: {mean:.3f}" for name, (mean, _) in scores["by_snr"].items())
        lines.append(f"cross-entropy in nats per token by SNR / t_c: {bins}")
    return "\n".join(lines)
