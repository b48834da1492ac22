"""Sample text: one loop over a path in per-token SNR space.

A state holds one SNR per token: 0 is [MASK], inf is clean, and in between there is Gaussian evidence z. Two exact moves change it:
    observe  snr -> snr + d: draw a token from the denoiser, then add the evidence that it would give; d = inf fixes the token
    forget   snr -> s < snr: the channel's own reverse; s = 0 is remasking. It needs no network.
A path is a rule that names the next SNR of every token; each is a few lines, see PATHS. Legend of names: model.py.

    python sampler.py --steps 32                                   # after `make demo`
    python sampler.py --ckpt out/demo/ckpt.pt --path mdlm --steps 64 --num_samples 100 --out samples.jsonl
"""

import json
import math
import time
from dataclasses import asdict, dataclass, replace

from config import Problem, arg, parse, provenance, run, whole_file

PATH_NAMES = ("posterior", "mdlm", "remdm-cap", "random", "sde")


@dataclass(frozen=True)
class Config:
    """What to sample and how."""

    ckpt: str = arg("out/demo/ckpt.pt", "checkpoint of train.py")
    path: str = arg("", "the rule that moves each token's SNR; empty: posterior for a DSL checkpoint, remdm-cap for an MDLM one",
                    choices=("",) + PATH_NAMES)
    steps: int = arg(32, "T, network calls per sample")
    num_samples: int = arg(4, "how many texts")
    batch_size: int = arg(32, "texts at a time; changes no text")
    length: int = arg(0, "L, tokens in a text; 0: as in training")
    top_p: float = arg(0.9, "nucleus: draw from the smallest set of tokens with this much probability; 1 draws from all")
    temperature: float = arg(1.0, "divides the logits; 0 takes the likeliest token")
    remask_budget: float = arg(4.0, "R, expected remasks per token over the whole run of `posterior`: eta = R / T")
    eta: float = arg(0.0, "remasking probability per step of a revealed token; 0: R / T for `posterior`, ReMDM's 0.04 for `remdm-cap`")
    gamma: float = arg(2.0, "`posterior` forgets tokens in proportion to (1 - p)^gamma")
    sde_top: float = arg(3.0, "SNR, in units of t_c, to which `sde` climbs before it reads the tokens off")
    sde_step: str = arg("drawn", "what `sde` adds: evidence of a drawn token, or of the posterior mean", choices=("drawn", "mean"))
    seed: int = arg(0, "seed; text i depends on (seed, i) alone")
    out: str = arg("", "write the texts here as jsonl: index, text, ids, nfe")
    show: int = arg(4, "print this many of the texts")
    watch: bool = arg(False, "show the first text while it takes shape")
    report: str = arg("", "write the share of words that occur in the checkpoint's corpus, and how it came about, to this json")
    data_dir: str = arg("data", "where datasets live, for --report")
    device: str = arg("", "cpu, cuda, mps; empty picks the best there is")

    def __post_init__(self):
        for name in ("steps", "num_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1")
        if not 0 < self.top_p <= 1:
            raise ValueError("--top_p must be above 0 and at most 1")
        if not 0 <= self.eta <= 1:
            raise ValueError("--eta is a probability: between 0 and 1")
        if min(self.temperature, self.remask_budget, self.gamma, self.length) < 0 or self.sde_top <= 0:
            raise ValueError("--temperature, --remask_budget, --gamma and --length cannot be negative, --sde_top must be positive")


def parse_args(argv=None):
    return parse(Config, argv, description=__doc__)


CFG = parse_args() if __name__ == "__main__" else None  # before torch is imported: a typo should cost nothing

import torch
from tqdm import tqdm

from data import tokenizer, word_report
from dsl_loss import critical_snr, keyed_generator
from model import load_checkpoint, pick_device

# ---- drawing a token ---------------------------------------------------------------------------------------------------------


def top_p(probs, p):
    """Nucleus: zero all but the smallest set of likeliest tokens whose mass reaches p (the token that crosses p stays) -> (N, V)."""
    if p >= 1:
        return probs
    ranked, order = probs.sort(-1, descending=True)
    ranked[ranked.cumsum(-1) - ranked >= p] = 0  # the mass before this token is enough already
    return torch.zeros_like(probs).scatter_(-1, order, ranked)


def sample_categorical(probs, u):
    """Draw by inverse CDF: unnormalised probs (N, V) and float64 uniforms u (N,) -> ids (N,).

    In float64, because float32 noise cuts off the tail of a large vocabulary and so silently lowers the temperature.
    """
    cdf = probs.double().cumsum(-1)
    return torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0].clamp(max=probs.shape[-1] - 1)


def draw(logits, u, temperature, p):
    """Tokens (N,) from logits (N, V) at a temperature, within the nucleus."""
    if temperature == 0:
        return logits.argmax(-1)
    return sample_categorical(top_p((logits.double() / temperature).softmax(-1), p), u)


# ---- the state and its two moves ---------------------------------------------------------------------------------------------


class State:
    """A batch of texts on their way: ids x (B, L), snr (B, L), evidence z (B, L, D); and the network's features, on demand."""

    def __init__(self, model, samples, length, cfg):
        self.model, self.samples, self.cfg = model, list(samples), cfg
        B, E = len(self.samples), model.E
        self.E, self.t_c, self.step, self.stepped = E, critical_snr(len(E)), 0, False
        self.x = torch.full((B, length), model.mask_id, device=E.device)
        self.snr = torch.zeros(B, length, device=E.device, dtype=E.dtype)
        self.z = torch.zeros(B, length, E.shape[1], device=E.device, dtype=E.dtype)
        self.nfe = torch.zeros(B, dtype=torch.long, device=E.device)
        self.stale = torch.ones(B, dtype=torch.bool, device=E.device)  # whose features are out of date
        self.features = None

    def random(self, kind, what, *shape, dtype=None):
        """Numbers (B, *shape) keyed by (seed, sample, what): a text depends neither on its batch nor on what was drawn before."""
        gens = [keyed_generator(self.x.device, self.cfg.seed, "sample", s, what) for s in self.samples]
        return torch.stack([kind(shape, generator=g, device=self.x.device, dtype=dtype) for g in gens])

    def hidden(self, where):
        """The network's features (N, C) at the N true positions of `where` (B, L). A text is sent through the network only if it has such
        a position and has changed since its last call; `nfe` counts."""
        due = self.stale & where.any(1)
        if due.any():
            x, snr = self.x[due], self.snr[due]
            h = self.model.embed_ids(x)
            noisy = (snr > 0) & snr.isfinite()
            if noisy.any():
                h[noisy] = self.model.embed_noisy(self.z[due][noisy]).to(h.dtype)
            fresh = self.model.hidden(h)
            if self.features is None:
                self.features = fresh.new_zeros(len(self.x), *fresh.shape[1:])
            self.features[due] = fresh
            self.nfe += due
            self.stale &= ~due
        return self.features[where]

    def logits(self, where):
        """Logits (N, V), float32 or wider, at the N true positions of `where` (B, L): the head runs only where it is needed."""
        logits = self.model.head(self.hidden(where))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def confidence(self):
        """The posterior probability (B, L) of each clean token given all the text including itself; 0 at tokens that are not clean."""
        clean = self.snr.isinf()
        rows = zip(self.hidden(clean).split(4096), self.x[clean].split(4096))  # in pieces: (4096, V) probabilities at a time
        p = [self.model.head(h).to(self.snr.dtype).softmax(-1).gather(-1, token[:, None])[:, 0] for h, token in rows]
        return torch.zeros_like(self.snr).masked_scatter(clean, torch.cat(p)) if p else torch.zeros_like(self.snr)

    def observe(self, up, target):
        """Raise the SNR at the positions `up` (B, L) to `target` (B, L): draw tokens, add the evidence that they would give."""
        if not up.any():
            return
        cfg, logits = self.cfg, self.logits(up)
        u = self.random(torch.rand, ("token", self.step), up.shape[1], dtype=torch.float64)
        token = draw(logits, u[up], cfg.temperature, cfg.top_p)
        fixed = target[up].isinf()
        self.x[up] = torch.where(fixed, token, self.model.mask_id)
        if not fixed.all():
            e = self.E[token] if cfg.sde_step == "drawn" else logits.softmax(-1).to(self.E.dtype) @ self.E
            d = torch.where(fixed, 0, target[up] - self.snr[up])[:, None]
            eps = self.random(torch.randn, ("eps", self.step), *self.z.shape[1:], dtype=self.z.dtype)[up]
            self.z[up] += d * e + d.sqrt() * eps
        self.changed(up, target)

    def forget(self, down, target):
        """Lower the SNR at the positions `down` (B, L) to `target` (B, L), exactly: z_s = (s/t) z_t + sqrt(s (t-s) / t) eps."""
        if not down.any():
            return
        s, t = target[down][:, None], self.snr[down][:, None]
        eps = self.random(torch.randn, ("forget", self.step), *self.z.shape[1:], dtype=self.z.dtype)[down] if s.any() else 0.0
        from_clean = s * self.E[self.x[down].clamp(max=len(self.E) - 1)] + s.sqrt() * eps  # t = inf: the evidence is drawn afresh
        from_noisy = s / t * self.z[down] + (s * (t - s) / t).sqrt() * eps
        self.z[down] = torch.where(t.isinf(), from_clean, from_noisy)
        self.x[down] = self.model.mask_id
        self.changed(down, target)

    def changed(self, where, target):
        self.snr[where] = target[where]
        self.stale |= where.any(1)


# ---- paths: (state, T) -> the next SNR of every token (B, L); state.step counts from 0 to T - 1 -------------------------------


def jump(state, T, remask, per_token=None):
    """The masked-diffusion step from alpha = step/T to alpha' = (step+1)/T revealed tokens (ReMDM, equations 7 and 8).

    A clean token is masked with probability remask (or per_token (B, L), of the same mean), a masked one is revealed with
    probability (alpha' - (1 - remask) alpha) / (1 - alpha): whatever remask is, the revealed share stays alpha'.
    """
    alpha, alpha_next = state.step / T, (state.step + 1) / T
    u = state.random(torch.rand, ("jump", state.step), state.x.shape[1], dtype=torch.float64)
    reveal = (alpha_next - (1 - remask) * alpha) / (1 - alpha)
    stays = u >= (remask if per_token is None else per_token)
    return clean_where(state, torch.where(state.snr.isinf(), stays, u < reveal))


def clean_where(state, clean):
    """The SNR (B, L) of tokens that are clean where `clean` is true and masked elsewhere."""
    return torch.zeros_like(state.snr).masked_fill(clean, torch.inf)


def remask_limit(state, T):
    """r_max = min(1, (1 - alpha') / alpha): more could not be revealed again in one step."""
    return min(1.0, (T - state.step - 1) / max(state.step, 1))


def mdlm(state, T):
    """Ancestral sampling of masked diffusion (MDLM): a revealed token stays."""
    return jump(state, T, 0.0)


def remdm_cap(state, T):
    """ReMDM-cap: every revealed token is remasked with probability min(eta, r_max)."""
    return jump(state, T, min(state.cfg.eta or 0.04, remask_limit(state, T)))


def posterior(state, T):
    """As many remasks as ReMDM-cap, but the tokens that the denoiser now doubts: in proportion to (1 - p(token | text))^gamma.

    A DSL network has learned to score tokens that it is shown, so these p come from the same forward pass.
    """
    eta = state.cfg.eta or state.cfg.remask_budget / T
    r = min(eta, remask_limit(state, T))
    if not state.snr.isinf().any() or r == 0:
        return jump(state, T, r)
    clean = state.snr.isinf()
    doubt = clean * (1 - state.confidence()).clamp(min=1e-9) ** state.cfg.gamma
    return jump(state, T, r, (r * clean.sum(1, keepdim=True) * doubt / doubt.sum(1, keepdim=True).clamp(min=1e-30)).clamp(max=1))


def random(state, T):
    """Random-order autoregression (ROAR): L/T tokens at a time in a random order."""
    L = state.x.shape[1]
    rank = state.random(torch.rand, "order", L).argsort(1).argsort(1)
    return clean_where(state, rank < round((state.step + 1) * L / T))


def sde(state, T):
    """All tokens climb together to sde_top t_c in T - 1 steps, slowly at first; the T-th call reads them off (see `sample`)."""
    if state.step == T - 1:
        return state.snr
    return torch.full_like(state.snr, state.cfg.sde_top * state.t_c * ((state.step + 1) / (T - 1)) ** 2)


PATHS = {"posterior": posterior, "mdlm": mdlm, "remdm-cap": remdm_cap, "random": random, "sde": sde}  # names as in PATH_NAMES


# ---- the loop ----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample(model, samples, cfg, path=None):
    """Generate texts `samples` (ints that key their random numbers): yields the State after every step, the last one clean.

    `path` is a name of PATHS or any function (state, T) -> next SNR (B, L); default cfg.path. What is not clean after T steps is
    read off by argmax. `model` needs embed_ids, embed_noisy, hidden, head, E and mask_id. Use: *_, state = sample(...); state.x.
    """
    path = path or cfg.path
    rule = PATHS[path] if isinstance(path, str) else path
    state = State(model, samples, cfg.length, cfg)
    yield state
    for state.step in range(cfg.steps):
        target = rule(state, cfg.steps)
        down, up = target < state.snr, target > state.snr
        state.observe(up, target)  # before forgetting: the draw sees the text as it is
        state.forget(down, target)
        if state.step == cfg.steps - 1 and not state.snr.isinf().all():
            left = ~state.snr.isinf()
            state.x[left] = state.logits(left).argmax(-1)
            state.changed(left, torch.full_like(state.snr, torch.inf))
        state.stepped = True
        yield state


# ---- the command line --------------------------------------------------------------------------------------------------------


def picture(state, row, tok):
    """One text as one line: ░ for [MASK], ▒ for a token in noise, ¶ for a line's end."""
    shown = []
    for token, snr in zip(state.x[row].tolist(), state.snr[row].tolist()):
        shown.append("░" if snr == 0 else "▒" if math.isfinite(snr) else tok.decode([token]))
    return "".join(shown).replace("\n", "¶")


def load_for_sampling(cfg):
    """The checkpoint's model, its dict, and the path to take. Raises Problem when tokenizer, length and weights do not fit together."""
    model, ckpt = load_checkpoint(cfg.ckpt, pick_device(cfg.device))
    V, L = tokenizer(ckpt["tokenizer"]).n_vocab, model.config.length
    if V != model.config.vocab_size:
        raise Problem(f"{cfg.ckpt} predicts {model.config.vocab_size} tokens, its tokenizer {ckpt['tokenizer']} has {V}: train it again")
    if cfg.length > L:
        raise Problem(f"--length {cfg.length} is longer than the {L} tokens that {cfg.ckpt} was trained on")
    if model.config.causal:
        raise Problem(f"{cfg.ckpt} is an autoregressive model, and the paths here need a bidirectional one")
    path = cfg.path or {"dsl": "posterior", "mdlm": "remdm-cap"}[ckpt["config"]["objective"]]
    return model, ckpt, replace(cfg, path=path, length=cfg.length or L)


def main(cfg):
    model, ckpt, cfg = load_for_sampling(cfg)
    tok, rows, start = tokenizer(ckpt["tokenizer"]), [], time.time()
    print(f"{cfg.ckpt} (step {ckpt['step']:,}): {cfg.num_samples} texts of {cfg.length} {ckpt['tokenizer']} tokens, path {cfg.path}, "
          f"T = {cfg.steps}, top_p {cfg.top_p}, on {model.E.device}", flush=True)
    with tqdm(total=-(-cfg.num_samples // cfg.batch_size) * cfg.steps, desc="steps", disable=cfg.watch) as bar:
        for first in range(0, cfg.num_samples, cfg.batch_size):
            batch = range(first, min(first + cfg.batch_size, cfg.num_samples))
            for state in sample(model, batch, cfg):
                bar.update(state.stepped)
                if cfg.watch and first == 0:
                    print(f"{state.step + state.stepped:4d}  {picture(state, 0, tok)}", flush=True)
            for i, ids, nfe in zip(batch, state.x.tolist(), state.nfe.tolist()):
                rows.append({"index": i, "text": tok.decode(ids), "ids": ids, "nfe": nfe})
    seconds = time.time() - start
    for row in rows[: cfg.show]:
        print(f"\n--- {row['index']} ---\n{row['text']}")
    calls = sum(row["nfe"] for row in rows) / len(rows)
    print(f"\n{len(rows)} texts, {calls:.1f} network calls each, {seconds:.1f} s, {len(rows) * cfg.length / seconds:,.0f} tokens/s")
    if cfg.out:
        with whole_file(cfg.out) as f:
            f.writelines(f"{json.dumps(row)}\n".encode() for row in rows)
        print(f"saved {cfg.out}")
    if cfg.report:
        words = word_report([row["text"] for row in rows], ckpt["config"]["dataset"], cfg.length, cfg.data_dir)
        print(f"words that occur in {words['corpus']}: {words['known_words']:.3f} +- {words['stderr']:.3f} of these texts, "
              f"{words['known_words_of_real_text']:.3f} of real text")
        training = {name: ckpt[name] for name in ("command", "commit", "step", "validation")}
        result = {**provenance(), **words, "nfe": calls, "sampling": asdict(cfg), "training": training}
        with whole_file(cfg.report) as f:
            f.write(f"{json.dumps(result, indent=1)}\n".encode())
        print(f"saved {cfg.report}")


if __name__ == "__main__":
    run(lambda: main(CFG))
