"""Judges: a causal language model reads a text once and gives its features (for MAUVE) and its negative log-likelihood (for gen-PPL).

A judge is one of our own autoregressive checkpoints (out/judge/ckpt.pt), which needs no download and works at any scale, or a causal
model of the `transformers` package (gpt2-large, or a folder), which is what published numbers use. N texts, C judge's width.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from config import Problem, optional, whole_file
from dsl_loss import token_ce
from model import load_checkpoint, rotary_table

VERSION = 1  # of what a verdict means: raise it when `score` or `counted` changes, or old files of the cache would be believed
CHUNK = 256  # texts in a file of the cache: so much is lost when a run is interrupted


class Judge(NamedTuple):
    """A causal language model. `key` is a hash of its weights and of all else that decides its verdict."""

    name: str
    key: str
    context: int  # the longest text that it reads; longer ones are cut
    tokenizer: str  # the name of our tokenizer whose ids it reads, or "" when it has one of its own
    encode: object  # text (str) -> ids (list of int), with a tokenizer of its own
    hidden: object  # ids (B, n) -> features (B, n + 1 - first, C); feature i predicts token i + first, the last has read the whole text
    head: object  # features (..., C) -> logits (..., V)
    first: int  # the first token that is predicted: 0 if the judge knows how texts begin, else 1
    eos: int  # of this id only the first counts in the likelihood, as in MDLM's gen-PPL; -1 when each counts


def fingerprint(model, *facts):
    """A hash of a module's weights and of facts about it, 16 hex digits."""
    digest = hashlib.sha256(repr((VERSION, *facts)).encode())
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

        L, width = model.config.length, model.config.d_model // model.config.n_head
        model.cos, model.sin = (x.to(device) for x in rotary_table(L + 1, width))  # one more: the mask before the first token

        def hidden(x):
            return model.hidden(model.embed_ids(torch.cat([x.new_full((len(x), 1), model.mask_id), x], 1)))

        return Judge(name, fingerprint(model, ckpt["model_config"]), L, ckpt["tokenizer"], None, hidden, model.head, 0, -1)
    transformers = optional("transformers")
    try:
        tok = transformers.AutoTokenizer.from_pretrained(name)
        model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device).eval()
    except Exception as error:  # transformers has many, safetensors one of its own for a file that is cut off
        raise Problem(f"cannot load the judge {name!r}: go online once, or name a folder that transformers wrote, or an AR checkpoint "
                      f"of ours (.pt). {type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from None
    body, head = model.base_model, model.get_output_embeddings()
    context, eos = min(1024, getattr(model.config, "max_position_embeddings", 1024)), -1 if tok.eos_token_id is None else tok.eos_token_id

    def hidden(x):
        return body(x, use_cache=False).last_hidden_state

    with torch.no_grad():
        one, other = hidden(torch.tensor([[0, 1, 2], [0, 1, 3]], device=device))[:, :2]
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-3):
        raise Problem(f"{name} sees the tokens that it should predict: a judge must be a causal model, like gpt2-large")
    key = fingerprint(model, model.config.to_json_string(), context, eos)  # published numbers cut at 1,024
    return Judge(name, key, context, "", lambda text: tok(text, verbose=False)["input_ids"], hidden, head, 1, eos)


def counted(judge, ids):
    """Which tokens (n,) of a text enter its likelihood: those that can be predicted; of EOS, only the first, as in MDLM's gen-PPL."""
    counts = torch.arange(len(ids)) >= judge.first
    eos = ids == judge.eos
    return counts & (~eos | (eos.cumsum(0) == 1))


@torch.no_grad()
def score(judge, texts, device):
    """One pass over texts (list of 1-D int64 tensors) -> features (N, C) after their last tokens, NLL (N,) in nats, and over how many
    tokens (N,). Texts are padded at the end, which a causal model cannot see."""
    h = judge.hidden(pad_sequence(texts, batch_first=True).to(device))  # (N, n + 1 - first, C)
    features, nll, tokens = [], [], []
    for row, ids in zip(h, texts):  # a text at a time: (n, V) logits are the largest thing here
        logits = judge.head(row[: len(ids) - judge.first])
        ce, counts = token_ce(logits, ids[judge.first :].to(device)).cpu().double(), counted(judge, ids)[judge.first :]
        features.append(row[len(ids) - judge.first].float().cpu())
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
    run goes on where it was. A list that grew keeps its first chunks. Raises Problem for an empty text where the judge needs a token.
    """
    if not all(len(ids) >= judge.first for ids in texts):
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
                own = path.with_suffix(f".{os.getpid()}")  # another process may judge the same texts
                with whole_file(own) as f:
                    np.savez(f, **dict(zip(("features", "nll", "tokens"), (column.numpy() for column in verdict))))
                own.replace(path)
        parts.append(verdict)
    return tuple(torch.cat(column) for column in zip(*parts))
