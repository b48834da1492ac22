"""Judges: a causal language model reads a text once and gives its features (for MAUVE) and its negative log-likelihood (for gen-PPL).

A judge is one of our own autoregressive checkpoints (out/judge/ckpt.pt), which needs no download and works at any scale, or a causal
model of the `transformers` package (gpt2-large, or a folder), which is what published numbers use. N texts, C judge's width.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from config import Problem, optional, whole_file
from dsl_loss import token_ce
from model import load_checkpoint

CHUNK = 256  # texts in a file of the cache: so much is lost when a run is interrupted


class Judge(NamedTuple):
    """A causal language model. `key` is a hash of its weights."""

    name: str
    key: str
    context: int  # the longest text that it reads; longer ones are cut
    tokenizer: str  # the name of our tokenizer whose ids it reads, or "" when it has one of its own
    encode: object  # text (str) -> ids (list of int), with a tokenizer of its own
    hidden: object  # ids (B, n) -> features (B, n, C); feature i has read all tokens that may predict token i + first
    head: object  # features (..., C) -> logits (..., V)
    first: int  # the first token that is predicted: 0 if the judge knows how texts begin, else 1
    eos: int  # ids of this kind count once, as in MDLM's gen-PPL: the text ends there; -1 when each counts


def fingerprint(model):
    """A hash of a module's weights, 16 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().flatten().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_judge(name, device):
    """The judge called `name`: a path ending in .pt is an AR checkpoint of train.py, anything else a model of `transformers`.

    Weights and arithmetic are float32, so that a number does not depend on the device. Raises Problem for what cannot be a judge.
    """
    if name.endswith(".pt"):
        model, ckpt = load_checkpoint(name, device)
        if not model.causal:
            raise Problem(f"{name} was trained by {ckpt['config']['objective']} and cannot judge: a judge is an autoregressive model, "
                          "trained with `train.py --objective ar`")

        def hidden(x):  # the mask stands before the first token, see ar_logits
            return model.hidden(model.embed_ids(torch.cat([torch.full_like(x[:, :1], model.mask_id), x[:, :-1]], 1)))

        return Judge(name, fingerprint(model), model.config.length, ckpt["tokenizer"], None, hidden, model.head, 0, -1)
    transformers = optional("transformers")
    try:
        tok = transformers.AutoTokenizer.from_pretrained(name)
        model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device).eval()
    except (OSError, ValueError) as error:
        raise Problem(f"cannot load the judge {name!r}: go online once, or name a folder that transformers wrote, or an AR checkpoint "
                      f"of ours (.pt). {type(error).__name__}: {str(error).splitlines()[0]}") from None
    body, head = model.base_model, model.get_output_embeddings()
    context = min(1024, model.config.max_position_embeddings)  # published numbers cut at 1,024
    return Judge(name, fingerprint(model), context, "", lambda text: tok(text, verbose=False)["input_ids"],
                 lambda x: body(x).last_hidden_state, head, 1, -1 if tok.eos_token_id is None else tok.eos_token_id)


def counted(judge, ids):
    """Which tokens (n,) of a text enter its likelihood: those that can be predicted; of EOS, only the first, as in MDLM's gen-PPL."""
    counts = torch.arange(len(ids)) >= judge.first
    eos = ids == judge.eos
    return counts & (~eos | (eos.cumsum(0) == 1))


@torch.no_grad()
def score(judge, texts, device):
    """One pass over texts (list of 1-D int64 tensors, none empty) -> features (N, C) of their last tokens, NLL (N,) in nats, and over
    how many tokens (N,). Texts are padded at the end, which a causal model cannot see."""
    h = judge.hidden(pad_sequence(texts, batch_first=True).to(device))  # (N, n, C)
    features, nll, tokens = [], [], []
    for row, ids in zip(h, texts):  # a text at a time: (n, V) logits are the largest thing here
        logits = judge.head(row[: len(ids) - judge.first])
        ce, counts = token_ce(logits[None], ids[None, judge.first :].to(device))[0].cpu().double(), counted(judge, ids)[judge.first :]
        features.append(row[len(ids) - 1].float().cpu())
        nll.append(ce[counts].sum())
        tokens.append(counts.sum())
    return torch.stack(features), torch.stack(nll), torch.stack(tokens)


def judge_chunk(judge, texts, device, batch_size):
    """`score` in batches of texts of similar length, results in the given order."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    parts = [score(judge, [texts[i] for i in batch], device) for batch in batches]
    back = torch.tensor(order).argsort()
    return tuple(torch.cat(column)[back] for column in zip(*parts))


def read_cache(path):
    """What `judged` kept in a file, or None when it is not there or damaged."""
    try:
        with np.load(path) as kept:
            return tuple(torch.from_numpy(kept[name]) for name in ("features", "nll", "tokens"))
    except Exception:  # zip and numpy each have their own way to say it; it is computed again
        return None


def judged(judge, texts, device, cache="", batch_size=16):
    """The judge's verdict on texts (list of 1-D int64 tensors): features (N, C), NLL (N,) in nats, tokens (N,).

    Each CHUNK of texts is kept in a file of the folder `cache`, named by what it holds: it is never judged twice, and an interrupted
    run goes on where it was. A text that grew by appending keeps its first chunks. Raises Problem for an empty text.
    """
    if not all(len(ids) for ids in texts):
        raise Problem("a text without any token has no features")
    parts = []
    for start in tqdm(range(0, len(texts), CHUNK), f"judging {len(texts):,} texts", leave=False, delay=1):
        chunk = [ids[: judge.context] for ids in texts[start : start + CHUNK]]
        digest = hashlib.sha256(repr([ids.tolist() for ids in chunk]).encode()).hexdigest()[:32]
        path = Path(cache) / judge.key / f"{digest}.npz" if cache else None
        verdict = read_cache(path) if path else None
        if verdict is None:
            verdict = judge_chunk(judge, chunk, device, batch_size)
            if path:
                with whole_file(path) as f:
                    np.savez(f, **dict(zip(("features", "nll", "tokens"), (column.numpy() for column in verdict))))
        parts.append(verdict)
    return tuple(torch.cat(column) for column in zip(*parts))
