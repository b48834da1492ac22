"""The four questions of analyze.py: what each measures, and how. Legend of names: model.py.

A question is a function (cfg, run, windows (N, L), meta) -> dict of plain numbers; cfg is analyze.Config, run a model with its name and
objective. A model needs embed_ids, embed_noisy, hidden, head, E and mask_id. A number with an error is (value, standard error).
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F
from tqdm import tqdm

from config import Problem
from dsl_loss import (add_noise, ar_ce, critical_snr, diffusion_bound, endpoint_snr, forget, keyed_generator, roar_bound, snr_grid,
                      stratified)
from sampler import sample
from sampler_config import Config as Sampling
from scores import auc, ece, ece_by_chance, error_by_entropy, jackknife, mean_and_stderr, reliability, share, threshold, trade_off
from state import ROWS, sample_categorical
from validate import bits_per_byte


class Run(NamedTuple):
    """A trained model and where it comes from; `about` is what the json says of it."""

    name: str
    objective: str
    model: torch.nn.Module
    about: dict


def batches(cfg, model, windows, name):
    """(numbers, ids (B, L) on the model's device) of `windows` (N, L), with a bar."""
    for part in tqdm(torch.arange(len(windows)).split(cfg.batch_size), name, leave=False):
        yield part.tolist(), windows[part].to(model.E.device)


def draws(kind, cfg, what, numbers, *shape, like):
    """Random numbers (B, *shape), of the device and dtype of `like`. Keyed by what they are for and by window, so alike for all models."""
    gens = [keyed_generator(like.device, cfg.seed, "analyze", what, n) for n in numbers]
    return torch.stack([kind(shape, generator=g, device=like.device, dtype=like.dtype) for g in gens])


def ask(model, h, where, y):
    """What the network says of the n true positions of `where` (B, L), shown h (B, L, C) -> best, its log-probability, that of the ids
    y (B, L), and the entropy, (n,) each, in nats. Few rows see the vocabulary at a time."""
    def answers(h, y):
        logits = model.head(h)
        log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        top, best = log_p.max(-1)
        return best, top, log_p.gather(-1, y[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)

    rows = zip(model.hidden(h)[where].split(ROWS), y[where].split(ROWS))
    return [torch.cat(part).cpu() for part in zip(*(answers(*row) for row in rows))]


def evidence(cfg, model, x):
    """Ids (...) as evidence at --evidence_snr -> h (..., C): the channel's mean, without its noise, so that the answer is no draw."""
    return model.embed_noisy(cfg.evidence_snr * critical_snr(len(model.E)) * model.E[x])


# ---- correction --------------------------------------------------------------------------------------------------------------

WAYS = ("lookup", "evidence", "sweep")  # how a model can look at a draft


def correction(cfg, run, windows, meta):
    """Self-correction: a share --corrupt of the tokens is wrong, the text is shown whole, and no one says which.

    Errors are `random` (another token, by the windows' unigram counts) or the model's `own` (a draw from p given the other tokens, all
    positions at once; where it hits the truth the token counts as clean). A position is changed to the likeliest token where the margin
    log p(best) - log p(shown) > tau. tau is 0, plain argmax, or the least that keeps 98% or 99% of the clean tokens of the even-numbered
    windows; that one is judged on the others, and stays 0 where argmax keeps more. `refined` shows the changed text again.

    Ways to look: `lookup`, the draft as clean tokens; `evidence`, at the SNR --evidence_snr, for which MDLM was not trained but which may
    help it too; `sweep`, every position masked once in --sweep calls: the control that is fair to MDLM, whose answers at tokens that are
    shown were never trained.
    Reported: shares of errors fixed (the truth put in) and of clean tokens kept; AUC of 1 - p(shown) between errors and clean tokens.
    """
    counts, result = torch.bincount(windows.flatten(), minlength=len(run.model.E)).double(), {}
    for kind in ("random", "own"):
        name = f"{run.name}, {kind} errors"
        draft = torch.cat([corrupt(cfg, run.model, kind, x0, n, counts).cpu() for n, x0 in batches(cfg, run.model, windows, name)])
        if (draft == windows).all():
            raise Problem(f"{run.name} makes no error in {len(windows)} windows: raise --corrupt or --num_windows")
        result[kind] = {way: repair(cfg, run.model, way, draft, windows, f"{name}, {way}") for way in WAYS}
    return result


def corrupt(cfg, model, kind, x0, numbers, counts):
    """The draft (B, L) of the windows x0 (B, L): the same positions are wrong for every model and kind."""
    L = x0.shape[1]
    counts = counts.to(x0.device)
    u = draws(torch.rand, cfg, "errors", numbers, 2, L, like=counts)
    chosen = u[:, 0].argsort(-1).argsort(-1) < min(max(1, round(cfg.corrupt * L)), L - 1)
    if kind == "random":
        return torch.where(chosen, another_token(counts, x0, u[:, 1]), x0)
    h = model.hidden(model.embed_ids(x0.masked_fill(chosen, model.mask_id)))[chosen]
    rows = zip(h.split(ROWS), u[:, 1][chosen].split(ROWS))
    return x0.masked_scatter(chosen, torch.cat([sample_categorical(model.head(h).double().softmax(-1), v) for h, v in rows]))


def another_token(counts, x0, u):
    """Draw by the counts (V,) among the tokens other than x0: the inverse CDF of u (of x0's shape), skipping x0's interval."""
    cdf = counts.cumsum(0)
    place = u * (cdf[-1] - counts[x0])
    place = place + counts[x0] * (place >= cdf[x0] - counts[x0])
    return torch.searchsorted(cdf, place, right=True)


def views(cfg, model, way, draft):
    """One (h (B, L, C) that is shown, where (B, L) the answer counts) for each call of a way to look at a draft (B, L)."""
    everywhere = torch.ones_like(draft, dtype=torch.bool)
    if way == "lookup":
        yield model.embed_ids(draft), everywhere
    elif way == "evidence":
        yield evidence(cfg, model, draft), everywhere
    else:
        for c in range(min(cfg.sweep, draft.shape[1])):
            masked = everywhere & (torch.arange(draft.shape[1], device=draft.device) % cfg.sweep == c)
            yield model.embed_ids(draft.masked_fill(masked, model.mask_id)), masked


def look(cfg, model, way, draft):
    """Best token, margin and log p(shown), (B, L) each, on the CPU, and the number of calls."""
    best, margin, shown, calls = torch.zeros_like(draft).cpu(), torch.zeros(draft.shape), torch.zeros(draft.shape), 0
    for h, where in views(cfg, model, way, draft):
        ids, top, p, _ = ask(model, h, where, draft)
        where, calls = where.cpu(), calls + 1
        best[where], margin[where], shown[where] = ids, (top - p).float(), p.float()
    return best, margin, shown, calls


def repair(cfg, model, way, draft, truth, name):
    """Every number of one way to look at the drafts (N, L)."""
    *looks, calls = zip(*(look(cfg, model, way, x) for _, x in batches(cfg, model, draft, name)))
    best, margin, shown = map(torch.cat, looks)
    error, number = draft != truth, torch.arange(len(draft))[:, None].expand(draft.shape)
    tune, test = slice(0, None, 2), slice(1, None, 2)  # tau is chosen on the even windows and judged on the odd ones

    def outcome(text, rows):
        right, wrong = text == truth[rows], error[rows]
        return {"fixed": share(right, wrong), "kept": share(right, ~wrong)}

    # -log p(shown) ranks as 1 - p(shown) does, also where that has rounded to 1; at tau = 0 a tie leaves the token that is shown
    result = {"calls": calls[0], "windows": len(draft), "errors": error.sum().item(), "clean": (~error).sum().item(),
              "auc": jackknife(lambda keep: auc(-shown.flatten()[keep], error.flatten()[keep]), number.flatten()),
              "argmax": outcome(torch.where(margin > 0, best, draft), slice(None)),
              "curve": trade_off(margin.flatten(), error.flatten(), (best == truth).flatten())}
    for kept in (0.99, 0.98):
        tau = threshold(margin[tune][~error[tune]], kept)
        result[f"at_{100 * kept:.0f}"] = {"tau": tau, **outcome(torch.where(margin > tau, best, draft)[test], test)}
    texts, tau = [], result["at_98"]["tau"]
    for _, x in batches(cfg, model, draft[test], f"{name}, {cfg.refine} rounds"):
        for _ in range(cfg.refine):
            best, margin, *_ = look(cfg, model, way, x)
            x = torch.where(margin > tau, best, x.cpu()).to(x.device)
        texts.append(x.cpu())
    return result | {"refined": {"calls": calls[0] * cfg.refine, "tau": tau, **outcome(torch.cat(texts), test)}}


# ---- calibration -------------------------------------------------------------------------------------------------------------


def tokens_of(answers, truth, numbers, where, step=0):
    """Answers of `ask` at `where` (B, L) -> a row per token (n, 6): window, step, confidence, correct, NLL of the truth, entropy."""
    best, top, log_p, entropy = answers
    window = torch.tensor(numbers)[:, None].expand(where.shape)[where.cpu()]
    return torch.stack([window, torch.full_like(window, step), top.exp(), best == truth[where].cpu(), -log_p, entropy], 1).double()


def calibration_of(tokens):
    """Calibration of tokens (n, 6): ECE and what chance alone would make of it, mean confidence, accuracy and NLL, each with its error."""
    window, _, confidence, correct, nll, entropy = tokens.unbind(1)
    scores = {"tokens": len(tokens), "ece": jackknife(lambda keep: ece(confidence[keep], correct[keep]), window),
              "ece_by_chance": ece_by_chance(confidence)}
    for name, values in (("confidence", confidence), ("accuracy", correct), ("nll", nll)):
        scores[name] = jackknife(lambda keep, values=values: values[keep].mean().item(), window)
    count, c, accuracy, _ = reliability(confidence, correct)
    return scores | {"reliability": [row for row in zip(c.tolist(), accuracy.tolist(), count.tolist()) if row[2]],
                     "error_by_entropy": error_by_entropy(entropy, correct)}


def calibration(cfg, run, windows, meta):
    """Calibration of p(x_i | draft): confidence is the largest probability, correct means that its token is the true one.

    `truth`: windows with a random-order mask, judged where masked. `own`: a random half of the window is given and the model writes the
    rest by remdm-cap without a nucleus; at T/4, T/2, 3T/4 and T - 1 it is asked about the `masked` positions and about the tokens `shown`,
    which it wrote itself, by lookup; then with those tokens as `evidence`, the given half staying clean: about them, and about the
    positions masked beside them.
    On `truth` an ECE of chance size is calibration. On `own` it cannot be had: the true token is one of many right answers, and the less
    the given half decides, the more rarely any draft meets it. There it measures how far a model over-trusts what it has written.
    """
    model, found = run.model, {}
    for numbers, x0 in batches(cfg, model, windows, f"{run.name}, calibration"):
        u = draws(torch.rand, cfg, "masks", numbers, 2, x0.shape[1], like=torch.zeros((), dtype=torch.float64, device=x0.device))
        masked = endpoint_snr(stratified(f"{cfg.seed} analyze", numbers), u[:, 0]) == 0
        answers = ask(model, model.embed_ids(x0.masked_fill(masked, model.mask_id)), masked, x0)
        found.setdefault("truth, masked", []).append(tokens_of(answers, x0, numbers, masked))
        hidden = u[:, 1].argsort(-1).argsort(-1) < (x0.shape[1] + 1) // 2
        sampling = Sampling(steps=cfg.steps, top_p=1.0, seed=cfg.seed)
        T, given = cfg.steps, x0.masked_fill(hidden, model.mask_id)
        for state in sample(model, numbers, sampling, "remdm-cap", given):
            if state.step not in (T // 4, T // 2, 3 * T // 4, T - 1):
                continue
            h, shown = model.embed_ids(state.x), state.revealed
            rows = tokens_of(ask(model, h, hidden, x0), x0, numbers, hidden, state.step)
            found.setdefault("own, masked", []).append(rows[~shown[hidden].cpu()])
            found.setdefault("own, shown", []).append(rows[shown[hidden].cpu()])
            if shown.any():
                h[shown] = evidence(cfg, model, state.x[shown]).to(h.dtype)
                rows = tokens_of(ask(model, h, hidden, x0), x0, numbers, hidden, state.step)
                found.setdefault("own, masked beside evidence", []).append(rows[~shown[hidden].cpu()])
                found.setdefault("own, shown as evidence", []).append(rows[shown[hidden].cpu()])
    result = {}
    for kind, tokens in ((kind, torch.cat(parts)) for kind, parts in found.items() if sum(map(len, parts))):
        steps = {int(step): calibration_of(tokens[tokens[:, 1] == step]) for step in tokens[:, 1].unique()}
        result[kind] = calibration_of(tokens) | ({"by_step": steps} if len(steps) > 1 else {})
    return result


# ---- bounds ------------------------------------------------------------------------------------------------------------------

TOPS = (1, 2, 4, 8)  # G of the diffusion bound in units of t_c, chosen before any data was seen


def bounds(cfg, run, windows, meta):
    """Bits per byte of the windows, (mean, standard error) each: exact `nll` for AR; the random-order bound `roar`, MDLM's NELBO, for the
    others; for DSL the diffusion bound at G = 1, 2, 4, 8 t_c, with the same noise. An exact denoiser's falls towards -log p as G grows; a
    trained one's may rise again, as it adds errors at every SNR. It is a bound at each G; the best of four is not one."""
    def bits(term, name):
        nats = torch.cat([term(x0, n).cpu() for n, x0 in batches(cfg, run.model, windows, f"{run.name}, {name}")])
        return mean_and_stderr(bits_per_byte(meta, "val", nats / meta["text_length"]))

    def diffusion(G):
        grid = snr_grid(critical_snr(len(run.model.E)), top=G)
        return lambda x0, n: diffusion_bound(run.model, x0, grid, [keyed_generator(x0.device, cfg.seed, "analyze", i) for i in n])

    if run.objective == "ar":
        return {"windows": len(windows), "nll": bits(lambda x0, n: ar_ce(run.model, x0).sum(1), "likelihood")}
    result = {"windows": len(windows), "roar": bits(lambda x0, n: roar_bound(run.model, x0, f"{cfg.seed} analyze", n), "random order")}
    return result | ({"diffusion": {G: bits(diffusion(G), f"diffusion, G = {G} t_c") for G in TOPS}} if run.objective == "dsl" else {})


# ---- invariance --------------------------------------------------------------------------------------------------------------

LEVELS = (0.25, 0.5, 1, 2)  # in units of t_c, all tokens of a text at one


def routes(e, t, eps):
    """Three ways for the true embeddings e (B, L, D) to reach the SNR t with noise eps (7, B, L, D) -> {name: z}."""
    def at(snr):
        return torch.full(e.shape[:-1], snr, dtype=e.dtype, device=e.device)

    def observe(z, d, eps):
        return z + add_noise(e, at(d), eps)

    climb = 0
    for k in range(4):
        climb = observe(climb, t / 4, eps[k])
    return {"direct": observe(0, t, eps[4]), "climb": climb, "forget": forget(observe(0, 4 * t, eps[5]), at(4 * t), at(t), eps[6])}


def invariance(cfg, run, windows, meta):
    """One network without a time input, at four SNRs that all tokens of a text have in common.

    Cross-entropy in nats per token of evidence that came `direct`ly from the channel, by a `climb` of 4 observations of the true token,
    and by `forget`ting from 4 times the SNR. The three z have one distribution, so whatever the network, differences beyond chance would
    be a fault of the moves. What puts the *network* to the test is calibration at each level: if it took one SNR for another, it would be
    too sure or too doubtful at some of them.
    """
    model, t_c, result = run.model, critical_snr(len(run.model.E)), {}
    for level in LEVELS:
        t, tokens, ce = level * t_c, [], {}
        for numbers, x0 in batches(cfg, model, windows, f"{run.name}, SNR {level} t_c"):
            e = F.embedding(x0, model.E)
            eps = draws(torch.randn, cfg, ("route", level), numbers, 7, *e.shape[1:], like=e).transpose(0, 1)  # (7, B, L, D)
            everywhere = torch.ones_like(x0, dtype=torch.bool)
            for route, z in routes(e, t, eps).items():
                answers = ask(model, model.embed_noisy(z), everywhere, x0)
                ce.setdefault(route, []).append(-answers[2].view(x0.shape).mean(1))
                if route == "direct":
                    tokens.append(tokens_of(answers, x0, numbers, everywhere))
        ce = {route: torch.cat(parts) for route, parts in ce.items()}
        result[level] = {"windows": len(windows), "ce": {route: mean_and_stderr(values) for route, values in ce.items()},
                         "ce_less_direct": {route: mean_and_stderr(ce[route] - ce["direct"]) for route in ("climb", "forget")},
                         **calibration_of(torch.cat(tokens))}
    return result


PROBES = {"correction": correction, "calibration": calibration, "bounds": bounds, "invariance": invariance}
