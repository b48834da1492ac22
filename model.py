"""Token ids or Gaussian evidence -> logits: unit-sphere token embedding, posterior view, a compact DiT; checkpoints in and out.

Legend, the same in every file (B batch, L length, V vocabulary, C d_model, D d_embed):
  x0      (B, L)     clean ids                      x  (B, L)     ids that may contain the mask (id V)
  E       (V, D)     unit-norm embeddings           e  (B, L, D)  E[x0]
  snr     (B, L)     0 is [MASK], inf is clean      z  (B, L, D)  snr * e + sqrt(snr) * eps
  h       (B, L, C)  the backbone's stream          logits, probs (B, L, V)
"""

import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from config import Problem, whole_file


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a network; everything needed to rebuild it from a checkpoint."""

    vocab_size: int  # V; the mask is one more id, V itself, and is never predicted
    length: int  # L, the longest sequence
    n_layer: int
    n_head: int
    d_model: int
    d_embed: int
    causal: bool = False
    dropout: float = 0.0
    beta: float = 1.0  # the view's inverse temperature at the start; 1 is the likelihood's own value
    mask_share: float = 0.5  # the weight of the [MASK] slot in the view of z = 0 at the start


WIDE = 2**26  # numbers of (tokens, V) that are held at a time, 256 MiB of float32


def pads(x):
    """Whether the vocabulary's side of a matrix product is padded to a multiple of 64, as tensor cores want it: on a GPU."""
    return x.device.type == "cuda"


def padded(x, value=0.0):
    """x (V, ...) with rows of `value` up to a multiple of 64."""
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, -len(x) % 64), value=value)


def in_chunks(f, V, *rows):
    """f(*rows) for tensors of n rows each. Where (n, V) is more than WIDE numbers, f gets WIDE / V rows at a time, and what it computes
    inside is not kept but computed again in the backward pass; else it is called once."""
    rows_at_once = WIDE // V
    size = max(1, rows_at_once // 64 * 64 or rows_at_once)  # tensor cores want multiples of 64
    if len(rows[0]) <= size:
        return f(*rows)
    call = partial(checkpoint, f, use_reentrant=False, preserve_rng_state=False) if torch.is_grad_enabled() else f
    return torch.cat([call(*part) for part in zip(*(x.split(size) for x in rows))])


class PosteriorView(nn.Module):
    """What the network sees of a token: the posterior of its evidence under a learned prior, averaged over a value table.

    z -> softmax over V+1 slots of (beta <z, e_v> + b_v), the last slot with key 0 standing for [MASK]; then times `value`.
    At infinite SNR this is the row of the clean token, at z = 0 one constant vector: the mask.
    """

    def __init__(self, config):
        super().__init__()
        V, C, D = config.vocab_size, config.d_model, config.d_embed
        self.raw_E = nn.Parameter(torch.randn(V, D))  # only its direction is used, see E
        self.value = nn.Parameter(torch.randn(V + 1, C) * C**-0.5)
        self.beta = nn.Parameter(torch.tensor(config.beta))
        self.bias = nn.Parameter(torch.zeros(V + 1))
        with torch.no_grad():  # softmax(bias)[V] = mask_share
            self.bias[V] = math.log(V * config.mask_share / (1 - config.mask_share))

    @property
    def E(self):
        """Unit-norm token embeddings (V, D): the norm is 1 after any optimiser step because it is taken out here."""
        return F.normalize(self.raw_E, dim=-1)

    def embed_ids(self, x):
        """Endpoint tokens: ids (B, L), the mask being V -> h (B, L, C): a token's row, or the mask's constant vector."""
        mask = self.bias.softmax(-1) @ self.value  # (C,) = embed_noisy(0)
        return torch.where((x == len(self.raw_E))[..., None], mask, F.embedding(x, self.value))

    def embed_noisy(self, z):
        """Tokens at a finite SNR: evidence z (..., D) -> h (..., C). Needs no SNR, because all |e_v| are equal."""
        see = partial(self.posterior_mean, slots=self.slots())
        return in_chunks(see, len(self.raw_E), z.reshape(-1, z.shape[-1])).view(*z.shape[:-1], self.value.shape[1])

    def slots(self):
        """Keys (V+1, D), biases (V+1,) and values (V+1, C) of the V tokens and [MASK], padded on a GPU by slots of no weight."""
        keys, bias, value = F.pad(self.E, (0, 0, 0, 1)), self.bias, self.value
        return (padded(keys), padded(bias, -math.inf), padded(value)) if pads(bias) else (keys, bias, value)

    def posterior_mean(self, z, slots):
        """The view itself: evidence z (N, D) -> (N, C). The softmax over the vocabulary is all that it costs."""
        keys, bias, value = slots
        with torch.autocast(z.device.type, enabled=False):  # scores reach hundreds: bfloat16 would be off by one
            weights = F.linear(self.beta * z.to(self.raw_E.dtype), keys, bias).softmax(-1)  # (N, V+1)
        return weights.to(value.dtype) @ value


def rotary_table(length, dim):
    """cos and sin (length, 1, 1, dim / 2) of the rotary positions, base 10000."""
    angle = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, dim, 2) / dim)
    return angle.cos()[:, None, None], angle.sin()[:, None, None]


def rotate(x, cos, sin):
    """Rotary position embedding, half-split: x (B, L, 2, H, dim), of queries and keys, -> the same shape."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Block(nn.Module):
    """A transformer block whose two branches each pass a per-channel gate, zero at the start.

    This is MDLM's adaLN-Zero block with its conditioning switched off: shift and scale have become the LayerNorm's bias and weight.
    """

    def __init__(self, config):
        super().__init__()
        C = config.d_model
        self.n_head, self.causal, self.dropout = config.n_head, config.causal, config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv = nn.Linear(C, 3 * C, bias=False)
        self.attn_out = nn.Linear(C, C, bias=False)
        self.mlp_in, self.mlp_out = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
        self.attn_gate, self.mlp_gate = nn.Parameter(torch.zeros(C)), nn.Parameter(torch.zeros(C))

    def forward(self, h, cos, sin):
        B, L, C = h.shape
        qkv = self.qkv(self.norm1(h)).view(B, L, 3, self.n_head, -1)  # (B, L, 3, H, C/H)
        with torch.autocast(h.device.type, enabled=False):  # on a CPU bfloat16 attention is five times slower than float32
            qk = rotate(qkv[:, :, :2], cos, sin)
            dtype = qk.dtype if h.device.type == "cpu" else qkv.dtype
            q, k, v = (x.to(dtype).transpose(1, 2) for x in (qk[:, :, 0], qk[:, :, 1], qkv[:, :, 2]))  # (B, H, L, C/H)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out = self.attn_out(out.transpose(1, 2).reshape(B, L, C))
        h = h + self.attn_gate * F.dropout(out, self.dropout, self.training)
        out = self.mlp_out(F.gelu(self.mlp_in(self.norm2(h)), approximate="tanh"))
        return h + self.mlp_gate * F.dropout(out, self.dropout, self.training)


class DSL(nn.Module):
    """The SNR-invariant denoiser p_theta(x_i | evidence). It has two doors and no time input:

    logits = model(model.embed_ids(x)) for endpoint tokens, model(model.embed_noisy(z)) for tokens at a finite SNR.
    `hidden` and `head` are apart so that a sampler can ask for the vocabulary only where it needs it.
    """

    def __init__(self, config):
        super().__init__()
        if config.d_model % (2 * config.n_head):
            raise Problem(f"d_model {config.d_model} must be an even multiple of n_head {config.n_head}")
        self.config, self.mask_id, self.causal = config, config.vocab_size, config.causal
        self.view = PosteriorView(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.d_model)
        self.out = nn.Linear(config.d_model, config.vocab_size)
        nn.init.zeros_(self.out.weight)  # so that the first prediction is the bias: the unigram distribution, see train.py
        cos, sin = rotary_table(config.length, config.d_model // config.n_head)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.embed_ids, self.embed_noisy = self.view.embed_ids, self.view.embed_noisy

    @property
    def E(self):
        """Unit-norm token embeddings (V, D)."""
        return self.view.E

    def hidden(self, h):
        """Embedded tokens (B, L, C) -> normalised features (B, L, C), L at most config.length."""
        cos, sin = self.cos[: h.shape[1]], self.sin[: h.shape[1]]
        for block in self.blocks:
            h = block(h, cos, sin)
        return self.norm(h)

    def head(self, h):
        """Features (..., C) -> logits (..., V) of the token itself, or of the next one when config.causal."""
        return self.out(h)

    def padded_head(self):
        """`head` as a function for many rows on a GPU: its logits are -inf from V up to a multiple of 64. The weight is padded, and cast
        for autocast, once for all of them."""
        weight, kind = padded(self.out.weight), self.out.weight.device.type
        if torch.is_autocast_enabled(kind):
            weight = weight.to(torch.get_autocast_dtype(kind))
        return partial(F.linear, weight=weight, bias=padded(self.out.bias, -math.inf))

    def forward(self, h):
        return self.head(self.hidden(h))


def save_checkpoint(path, model, **state):
    """Write the model's weights and `state` (plain types and tensors) to `path`, atomically. `model` is the raw module, never a wrapper;
    load_checkpoint wants `config`, of the training, and `tokenizer`, its name, in the state."""
    with whole_file(path) as f:
        try:
            torch.save({"model": model.state_dict(), "model_config": asdict(model.config), **state}, f)
        except RuntimeError as error:  # torch's zip writer hides a full disk behind an error of its own
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def load_checkpoint(path, device="cpu"):
    """Read a checkpoint of `save_checkpoint` -> (model in eval mode, with the averaged weights if it has them; the whole dict).

    Raises Problem when the file is missing, truncated, not ours, or when its weights do not fit its own configuration.
    """
    if not Path(path).is_file():
        raise Problem(f"no checkpoint at {path}: train one first with `make demo` or `python train.py --preset demo`")
    try:
        ckpt = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # zip, pickle and torch each have their own way to say it
        raise Problem(f"{path} is not a readable checkpoint (truncated or of another program): use another or train again") from None
    lacks = {"model", "model_config", "config", "tokenizer"} - (ckpt.keys() if isinstance(ckpt, dict) else set())
    if lacks:
        raise Problem(f"{path} is not a checkpoint of train.py: it lacks {', '.join(sorted(lacks))}")
    try:
        model = DSL(ModelConfig(**ckpt["model_config"]))
        model.load_state_dict(ckpt.get("ema", ckpt["model"]))
    except (TypeError, RuntimeError) as error:
        raise Problem(f"{path} holds weights that do not fit its configuration: {str(error).splitlines()[-1].strip()}") from None
    if not all(p.isfinite().all() for p in model.parameters()):
        raise Problem(f"{path} holds weights that are not finite: its training went wrong, use an earlier checkpoint")
    return model.to(device).eval(), ckpt
