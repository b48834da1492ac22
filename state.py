"""The state of texts on their way through per-token SNR space, its two moves, and how a token is drawn.

Legend of names: model.py. Rules that choose the moves: paths.py. The loop: sampler.py.
"""

import torch

from dsl_loss import add_noise, critical_snr, forget, keyed_generator, shifted
from runtime import autocast

ROWS = 512  # the vocabulary is looked at for so many positions at a time: (512, V) float64 is the largest thing here

# ---- drawing a token ---------------------------------------------------------------------------------------------------------


def top_p(probs, p, rule="usual"):
    """Nucleus: keep the likeliest tokens up to mass p -> (N, V), not renormalised. The token that crosses p stays (`usual`) or goes,
    but for the likeliest (`remdm`, as in ReMDM's published code)."""
    if p >= 1:
        return probs
    ranked, order = probs.sort(-1, descending=True)
    mass = ranked.cumsum(-1)
    out = (mass - ranked >= p) if rule == "usual" else (mass > p)
    out[:, 0] = False
    return torch.zeros_like(probs).scatter_(-1, order, ranked.masked_fill(out, 0))


def sample_categorical(probs, u):
    """Draw by inverse CDF: unnormalised probs (N, V) and float64 uniforms u (N,) -> ids (N,).

    In float64, because float32 noise cuts off the tail of a large vocabulary and so silently lowers the temperature.
    """
    cdf = probs.double().cumsum(-1)
    return torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0].clamp(max=probs.shape[-1] - 1)


def temperature_at(cfg, j):
    """The temperature at step j of cfg.steps: it falls from 1 + c to 1 - c times cfg.temperature, c = cfg.cooling."""
    return cfg.temperature * (1 + cfg.cooling * (1 - 2 * j / (cfg.steps - 1))) if cfg.cooling and cfg.steps > 1 else cfg.temperature


def draw(logits, u, cfg, j=0):
    """Tokens (N,) from logits (N, V) at the temperature of step j, within the nucleus."""
    if (temperature := temperature_at(cfg, j)) == 0:
        return logits.argmax(-1)
    return sample_categorical(top_p((logits.double() / temperature).softmax(-1), cfg.top_p, cfg.nucleus), u)


# ---- the state and its two moves ---------------------------------------------------------------------------------------------


class State:
    """A batch of texts on their way: ids x (B, L), snr (B, L), evidence z (B, L, D), and the network's features, on demand.

    `given` (B, L) marks the tokens of a prompt, which never change; `recorded` (B, L) is the probability that each clean token had
    when it was drawn, before temperature and nucleus; `nfe` (B,) counts network calls; `step` is the number of steps taken.
    """

    def __init__(self, model, samples, cfg, given, block=0):
        self.model, self.samples, self.cfg, self.block, self.step = model, list(samples), cfg, block, 0
        self.E, self.x = model.E, given.clone()
        self.t_c, self.given = critical_snr(len(self.E)), given != model.mask_id
        self.snr = torch.zeros(given.shape, dtype=self.E.dtype, device=given.device).masked_fill(self.given, torch.inf)
        self.z = self.snr.new_zeros(*given.shape, self.E.shape[1])
        self.recorded = torch.zeros_like(self.snr)
        self.nfe = torch.zeros_like(given[:, 0])
        self.stale = torch.ones_like(given[:, 0], dtype=torch.bool)  # whose features are out of date
        self.features = None

    @property
    def clean(self):
        return self.snr.isinf()

    @property
    def revealed(self):
        return self.clean & ~self.given

    def random(self, kind, what, *shape, dtype=None):
        """Numbers (B, *shape) keyed by (seed, sample, block, what): a text depends neither on its batch nor on earlier draws."""
        gens = [keyed_generator(self.x.device, self.cfg.seed, "sample", s, self.block, what) for s in self.samples]
        return torch.stack([kind(shape, generator=g, device=self.x.device, dtype=dtype) for g in gens])

    def uniform(self, what, once=False):
        """Uniform numbers (B, L) of this step, or of the whole run if `once`."""
        return self.random(torch.rand, what if once else (what, self.step), self.x.shape[1], dtype=torch.float64)

    def spread(self, what, once=False):
        """As `uniform`, but steps of the golden ratio (modulo 1) from a random start: positions below any threshold lie evenly over the
        text, and neighbours are never both below one of 0.38 or less."""
        start = self.uniform(what, once)[:, :1]
        return (start + (5**0.5 - 1) / 2 * torch.arange(self.x.shape[1], device=start.device)) % 1

    def places(self, what, once=False):
        """The numbers (B, L) by which positions are chosen to be revealed or forgotten: `uniform` or `spread`, as cfg.order says."""
        return (self.spread if self.cfg.order == "spread" else self.uniform)(what, once)

    def hidden(self, where):
        """The network's features (N, C) at the N true positions of `where` (B, L). A text is sent through the network only if it has
        such a position and has changed since its last call."""
        due = self.stale & where.any(1)
        if due.any():
            sent = torch.ones_like(due) if self.cfg.static else due  # the rest is computed again, for nothing
            with autocast(self.x.device, self.cfg.dtype):
                fresh = self.model.hidden(self.embed(sent)).to(self.E.dtype)
            if self.features is None:
                self.features = fresh.new_zeros(len(self.x), *fresh.shape[1:])
            self.features[sent] = fresh
            self.nfe += due
            self.stale &= ~due
        return self.features[where]

    def embed(self, due):
        """What the network is shown of the texts `due` (B,) -> (n, L, C); of an autoregressive one, each position sees those before it.
        Tokens that it wrote itself may be shown as noise-free evidence at the SNR clean_snr t_c, as `sampler.correct` shows a text."""
        x = self.x[due]
        if getattr(self.model, "causal", False):
            x = shifted(x, self.model.mask_id)
        h, noisy = self.model.embed_ids(x), (self.snr[due] > 0) & self.snr[due].isfinite()
        if noisy.any():
            h[noisy] = self.model.embed_noisy(self.z[due][noisy]).to(h.dtype)
        if self.cfg.clean_snr:
            written = self.revealed[due]
            h[written] = self.model.embed_noisy(self.cfg.clean_snr * self.t_c * self.E[x[written]]).to(h.dtype)
        return h

    def look(self, where, what):
        """what(logits (n, V) in float32 or wider, their flat positions (n,)) where `where` (B, L) is true, 0 elsewhere -> (B, L)."""
        out = torch.zeros_like(self.snr)
        if where.any():
            rows = zip(self.hidden(where).split(ROWS), where.flatten().nonzero()[:, 0].split(ROWS))
            out[where] = torch.cat([what(self.head(h), index) for h, index in rows]).to(out.dtype)
        return out

    def head(self, h):
        logits = self.model.head(h)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def confidence(self):
        """The posterior probability (B, L) of each revealed token given all the text including itself; 0 at the others.
        It ranks tokens, and nothing is drawn from it: so the head, too, is computed in the network's precision."""
        x = self.x.flatten()
        with autocast(self.x.device, self.cfg.dtype):
            return self.look(self.revealed, lambda logits, rows: logits.softmax(-1).gather(-1, x[rows, None])[:, 0])

    def leave_one_out(self):
        """The probability (B, L) of each revealed token given all the others, itself masked; 0 at the others. It is what `confidence`
        stands for, at the price of a call for each token, cfg.batch_size of them at a time, instead of one for the text."""
        out, mask = torch.zeros_like(self.snr), self.model.embed_ids(torch.full_like(self.x[:1, :1], self.model.mask_id))
        parts = ((i, at) for i, where in enumerate(self.revealed) if where.any() for at in where.nonzero()[:, 0].split(self.cfg.batch_size))
        for text, at in parts:
            h, row = self.embed(torch.arange(len(self.x), device=at.device) == text), torch.arange(len(at), device=at.device)
            h = h.repeat(len(at), 1, 1)
            h[row, at] = mask[0, 0].to(h.dtype)
            with autocast(self.x.device, self.cfg.dtype):
                logits = self.head(self.model.hidden(h)[row, at])
            out[text, at] = logits.softmax(-1)[row, self.x[text, at]].to(out.dtype)
            self.nfe[text] += len(at)
        return out

    def best(self):
        """The probability (B, L) of the likeliest token of each position that is not clean; 0 at the others."""
        return self.look(~self.clean, lambda logits, rows: logits.softmax(-1).amax(-1))

    def choose(self, logits, u):
        """Tokens (N,) drawn from logits (N, V), their probabilities (N,), and embeddings (N, D) of what was drawn, or posterior means if
        cfg.sde_step says so."""
        token, probs = draw(logits, u, self.cfg, self.step), logits.softmax(-1)
        e = self.E[token] if self.cfg.sde_step == "drawn" else probs.to(self.E.dtype) @ self.E
        return token, probs.gather(-1, token[:, None])[:, 0].to(self.recorded.dtype), e

    def decide(self, where):
        """`choose` at the N true positions of `where` (B, L). Only these rows see the vocabulary."""
        rows = zip(self.hidden(where).split(ROWS), self.uniform("token")[where].split(ROWS))
        return [torch.cat(parts) for parts in zip(*(self.choose(self.head(h), u) for h, u in rows))]

    def observe(self, up, target):
        """Raise the SNR at the positions `up` (B, L) to `target` (B, L): draw tokens, add the evidence that they would give."""
        if not up.any():
            return
        token, p, e = self.decide(up)
        fixed = target[up].isinf()
        self.x[up], self.recorded[up] = torch.where(fixed, token, self.model.mask_id), p
        if not fixed.all():
            d = torch.where(fixed, 0, target[up] - self.snr[up])[:, None]
            eps = self.random(torch.randn, ("eps", self.step), *self.z.shape[1:], dtype=self.z.dtype)[up]
            self.z[up] += d * e + d.sqrt() * eps
        self.move(up, target)

    def forget(self, down, target):
        """Lower the SNR at the positions `down` (B, L) to `target` (B, L), exactly."""
        if not down.any():
            return
        s, t = target[down], self.snr[down]
        eps = self.random(torch.randn, ("forget", self.step), *self.z.shape[1:], dtype=self.z.dtype)[down] if s.any() else 0.0
        from_clean = add_noise(self.E[self.x[down].clamp(max=len(self.E) - 1)], s, eps)  # t = inf: evidence is drawn afresh
        self.z[down] = torch.where(t.isinf()[:, None], from_clean, forget(self.z[down], t, s, eps))
        self.x[down] = self.model.mask_id
        self.move(down, target)

    def move(self, where, target):
        self.snr[where] = target[where]
        self.stale |= where.any(1)

    def read_off(self):
        """Give every token that is not clean its likeliest value."""
        left = ~self.clean
        token = self.look(left, lambda logits, rows: logits.argmax(-1))
        self.x = torch.where(left, token.long(), self.x)
        self.move(left, torch.full_like(self.snr, torch.inf))


class PlainState(State):
    """The same draws, the obvious way: every step sends every text, computes all logits, nucleus and draw at all positions, then picks.

    What State is tested against, draw for draw.
    """

    def hidden(self, where):
        self.nfe += 1
        return self.model.hidden(self.embed(torch.ones_like(self.stale)))[where]

    def decide(self, where):
        everywhere = self.choose(self.head(self.hidden(torch.ones_like(where))), self.uniform("token").flatten())
        return [part[where.flatten()] for part in everywhere]
