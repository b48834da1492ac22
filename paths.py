"""Paths: rules that name the next SNR of every token. A rule is a function (state, j, T) -> target SNR (B, L) for step j of T.

What a rule may look at: state.snr and state.x (B, L); state.clean (SNR inf), state.given (a prompt) and state.revealed (clean, but not
given); state.uniform(what) (B, L), fresh numbers for this step, state.spread(what), evenly spread ones, and state.places(what), which of
the two --order says; state.best() and state.confidence(), which ask the network, state.look(where, what), which asks it for anything else
that its logits say, and state.leave_one_out(), which asks it once for each token; state.recorded, the confidence that each token had when
it was drawn; state.t_c and state.cfg.
Raising an SNR observes, lowering it forgets (state.py).

The masked-diffusion family shares one schedule: alpha is the share of revealed tokens, time runs from 1 to 0 in T steps. The last
step reveals all that is left (the published code stops at time 1e-5 and fills by argmax, which differs for one token in 100,000).
"""

import torch

# ---- masked diffusion: tokens jump between 0 and inf -------------------------------------------------------------------------


def jump(state, alpha, alpha_next, remask, forgets=None, floor=0.0):
    """From a share alpha of revealed tokens to alpha_next (ReMDM, equations 7 and 8).

    A revealed token is forgotten with probability remask, or exactly where `forgets` (B, L) says, down to the SNR `floor`; any other is
    revealed with probability (alpha' - (1 - remask) alpha) / (1 - alpha): so a share alpha' is revealed if a share remask was forgotten.
    """
    number = state.places("jump")
    forgets = state.revealed & (number < remask) if forgets is None else forgets
    reveals = ~state.clean & (number < (alpha_next - (1 - remask) * alpha) / (1 - alpha))
    return state.snr.masked_fill(forgets, floor).masked_fill(reveals, torch.inf)


def limit(alpha, alpha_next):
    """r_max = min(1, (1 - alpha') / alpha): what is forgotten beyond it could not be made up for by revealing."""
    return min(1.0, (1 - alpha_next) / alpha) if alpha > 0 else 1.0


def mdlm(state, j, T):
    """Ancestral sampling of masked diffusion (MDLM): a revealed token stays."""
    return jump(state, j / T, (j + 1) / T, 0.0)


def remdm_cap(state, j, T):
    """ReMDM-cap: every revealed token is forgotten with probability min(eta, r_max); published eta 0.04."""
    return jump(state, j / T, (j + 1) / T, min(state.cfg.eta or 0.04, limit(j / T, (j + 1) / T)))


def remdm_rescale(state, j, T):
    """ReMDM-rescale: with probability eta r_max; eta 0.04 unless given."""
    return jump(state, j / T, (j + 1) / T, (state.cfg.eta or 0.04) * limit(j / T, (j + 1) / T))


def remdm_conf(state, j, T):
    """ReMDM-conf: r_max spread over the revealed tokens by softmax(-confidence when revealed), so about one token a step at most."""
    r_max, some = limit(j / T, (j + 1) / T), state.revealed.any(1, keepdim=True)
    share = (-state.recorded).masked_fill(~state.revealed, -torch.inf).masked_fill(~some, 0.0).softmax(1)
    mean = some * r_max / ((~state.given).sum(1, keepdim=True) * max(j / T, 1e-9))  # r_max over the expected number of revealed tokens
    return jump(state, j / T, (j + 1) / T, mean, state.revealed & (state.places("jump") < r_max * share))


def remdm_loop(state, j, T, t_on=0.55, t_off=0.05, alpha_on=0.9):
    """ReMDM-loop: mdlm until time t_on and alpha_on; there alpha stands still and tokens are forgotten with min(eta, r_max), published
    eta 0.02, and made up for; after t_off mdlm to the end."""
    def alpha_at(time):
        return alpha_on * min(1.0, (1 - time) / (1 - t_on)) if time > t_off else 1 - (1 - alpha_on) * time / t_off

    alpha, alpha_next, inside = alpha_at(1 - j / T), alpha_at(1 - (j + 1) / T), t_off < 1 - (j + 1) / T and 1 - j / T <= t_on
    return jump(state, alpha, alpha_next, min(state.cfg.eta or 0.02, limit(alpha, alpha_next)) if inside else 0.0)


def remdm(state, j, T):
    """ReMDM as published: cap with eta 0.04 for fewer steps than tokens (of the block, in a long text), else loop with eta 0.02."""
    return (remdm_cap if T < state.x.shape[1] else remdm_loop)(state, j, T)


def forward_backward(state, j, T):
    """The forward-backward corrector, ReMDM's baseline: forget at the forward process's own rate (alpha' - alpha) / alpha, so reveal
    twice as fast."""
    alpha, alpha_next = j / T, (j + 1) / T
    return jump(state, alpha, alpha_next, min((alpha_next - alpha) / alpha, limit(alpha, alpha_next)) if j else 0.0)


# ---- the same number of remasks, but chosen ----------------------------------------------------------------------------------


def by_doubt(state, r, confidence, spread):
    """Choose a share r of the revealed tokens (B, L) to forget, each with a probability in proportion to (1 - p)^gamma, at most 1, where p
    (B, L) is confidence() or, with --exact_doubt, leave_one_out(). If `spread`, of those less than 3 apart only the most doubtful goes, so
    a third at most: tokens that are drawn at once know nothing of each other."""
    p = state.leave_one_out() if state.cfg.exact_doubt else confidence()
    doubt = state.cfg.gamma * (1 - p).clamp(min=1e-9).log()
    some = state.revealed.any(1, keepdim=True)
    share = doubt.masked_fill(~state.revealed, -torch.inf).masked_fill(~some, 0.0).softmax(1)
    wanted = r * state.revealed.sum(1, keepdim=True) * share
    number = (state.spread if spread else state.uniform)("jump")
    chosen = state.revealed & (number < wanted)
    if spread:
        rank = (wanted - 1e-9 * number).masked_fill(~chosen, -1.0)  # the number breaks ties: at gamma 0 all are equal
        chosen &= rank >= torch.nn.functional.max_pool1d(rank, 5, stride=1, padding=2)
    return chosen


def doubtful(state, j, T, confidence, floor=0.0):
    """Forget as many tokens as ReMDM-cap would (eta is R / T by default), but those that `by_doubt` chooses. Where it chooses fewer, the
    text runs ahead of its schedule; in a spread order with much remasking it is whole from halfway on."""
    r = min(state.cfg.eta or state.cfg.remask_budget / T, limit(j / T, (j + 1) / T))
    if r == 0 or not state.revealed.any():  # the first step and the last: nothing to ask the network
        return jump(state, j / T, (j + 1) / T, r)
    return jump(state, j / T, (j + 1) / T, r, by_doubt(state, r, confidence, state.cfg.order == "spread"), floor)


def posterior(state, j, T):
    """By the denoiser's present p(token | text). A DSL network has learned to score tokens that it is shown, so this costs no call."""
    return doubtful(state, j, T, state.confidence)


def soft(state, j, T):
    """As `posterior`, but a doubtful token keeps evidence at the SNR soft_snr t_c, until it is observed again."""
    return doubtful(state, j, T, state.confidence, state.cfg.soft_snr * state.t_c)


def recorded(state, j, T):
    """By the confidence that the token had when it was drawn: the same budget for a model that cannot score what it is shown."""
    return doubtful(state, j, T, lambda: state.recorded)


# ---- in an order: a token that is revealed stays -----------------------------------------------------------------------------


def lowest_first(state, j, T, score):
    """Reveal so many tokens of the lowest score (B, L) that (j + 1) / T of those not given are clean."""
    rank = score.masked_fill(state.clean, -torch.inf).argsort(dim=1, stable=True).argsort(1)
    given = state.given.sum(1, keepdim=True)
    quota = given + ((j + 1) * (score.shape[1] - given) / T).round()
    return state.snr.masked_fill((rank < quota) & ~state.clean, torch.inf)


def confidence(state, j, T):
    """The tokens that the denoiser is surest of (MaskGIT, LLaDA), to a hundredth, else at random: all positions of an empty text are
    alike, and the last bits of their probabilities, others in each precision, should not say which come first."""
    return lowest_first(state, j, T, 0.01 * state.uniform("order") - state.best())


def random(state, j, T):
    """Random-order autoregression (ROAR). By --order spread it is the order that is random, not how far apart its neighbours lie."""
    return lowest_first(state, j, T, state.places("order", once=True))


def ar(state, j, T):
    """Left to right."""
    return lowest_first(state, j, T, torch.arange(state.x.shape[1], device=state.x.device).expand(state.x.shape).double())


# ---- draft, then mend ----------------------------------------------------------------------------------------------------


def draft_and_mend(state, j, T, confidence):
    """Write a whole draft in the first K = draft x T steps, evenly spread positions first. From step K - 1 on forget doubtful tokens, at
    most (T - 1 - j) / T of those written before (as Mask-Predict, which has no draft) and none less than 3 apart; the step after writes
    them anew."""
    K = max(1, round(state.cfg.draft * T))
    if j < K:
        target = lowest_first(state, j, K, state.spread("order", once=True))
    else:
        target = state.snr.masked_fill(~state.clean, torch.inf)
    if j < K - 1 or j == T - 1 or not state.revealed.any():
        return target
    return target.masked_fill(by_doubt(state, (T - 1 - j) / T, confidence, spread=True), 0.0)


def mend(state, j, T):
    """A draft, mended by the denoiser's present p(token | text), as `posterior`."""
    return draft_and_mend(state, j, T, state.confidence)


def mend_recorded(state, j, T):
    """A draft, mended by the confidence that each token had when it was drawn, as `recorded`."""
    return draft_and_mend(state, j, T, lambda: state.recorded)


# ---- through finite SNRs -----------------------------------------------------------------------------------------------------


def climb(state, j, T):
    """All tokens together from 0 to sde_top t_c in T steps, slowly at first."""
    return torch.full_like(state.snr, state.cfg.sde_top * state.t_c * ((j + 1) / T) ** 2)


def sde(state, j, T):
    """Localization: climb for T - 1 steps; the T-th call reads all tokens off by argmax, as `sample` does with what is not clean."""
    return climb(state, j, T - 1) if j < T - 1 else state.snr


def hybrid(state, j, T):
    """Climb for sde_steps (by default a third of T), then take the path `then`, whose tokens wait at their SNR instead of at 0."""
    n = state.cfg.sde_steps or T // 3
    return climb(state, j, n) if j < n else PATHS[state.cfg.then](state, j - n, T - n)


PATHS = {"posterior": posterior, "recorded": recorded, "soft": soft, "mend": mend, "mend-recorded": mend_recorded, "mdlm": mdlm,
         "remdm": remdm, "remdm-cap": remdm_cap, "remdm-rescale": remdm_rescale, "remdm-conf": remdm_conf, "remdm-loop": remdm_loop,
         "forward-backward": forward_backward, "confidence": confidence, "random": random, "ar": ar, "sde": sde, "hybrid": hybrid}
