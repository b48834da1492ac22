"""Token files and what reads them: the three tokenizers, `data/NAME/{train,val}.bin` with their meta.json, and the order of windows.

A token file is a flat array of uint16 ids, documents one after another, each closed by EOS, where there is one. L is a length in tokens.
"""

import functools
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import tiktoken

from config import Problem

DATA = Path("data")
EOS = "<|endoftext|>"
TOKENIZERS = ("bytes", "gpt2", "text8")


@functools.cache
def tokenizer(name):
    """The `tiktoken.Encoding` called `name`: `bytes` (256 bytes + EOS), `gpt2` (50,257 with EOS) or `text8` (space and a-z, no EOS).

    `n_vocab` is V; `tokenizer("gpt2")` downloads its vocabulary once (or reads TIKTOKEN_CACHE_DIR).
    """
    if name == "gpt2":
        try:
            return tiktoken.get_encoding("gpt2")
        except Exception as error:  # requests raises a family of its own
            raise Problem(f"cannot load GPT-2's vocabulary ({type(error).__name__}): go online once, or set TIKTOKEN_CACHE_DIR "
                          "to a folder that holds it") from None
    if name == "bytes":
        ranks, special = {bytes([i]): i for i in range(256)}, {EOS: 256}
    elif name == "text8":
        ranks, special = {c.encode(): i for i, c in enumerate(" abcdefghijklmnopqrstuvwxyz")}, {}
    else:
        raise Problem(f"unknown tokenizer {name!r}: choose one of {', '.join(TOKENIZERS)}")
    return tiktoken.Encoding(name, pat_str=r"[\s\S]{1,64}", mergeable_ranks=ranks, special_tokens=special)


def encode(tok, text, special=False):
    """Ids of a text that a user has typed; with `special`, the text of EOS is EOS. Raises Problem for characters that text8 does not
    know, on which tiktoken would panic."""
    if tok.name == "text8" and set(text) - set(" abcdefghijklmnopqrstuvwxyz"):
        raise Problem("this model knows only the letters a-z and space: write the text in them")
    return tok.encode(text, allowed_special="all") if special else tok.encode_ordinary(text)


def sha256(path):
    """Hex digest of a file, read in pieces."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def load_meta(name, folder=DATA):
    """The dict of `folder/name/meta.json`; a Problem tells what to run when it is not there."""
    try:
        meta = json.loads((Path(folder) / name / "meta.json").read_text())
        if isinstance(meta, dict) and {"tokenizer", "vocab_size", "eos"} <= meta.keys() and isinstance(meta["vocab_size"], int):
            return meta
        raise ValueError
    except FileNotFoundError:
        raise Problem(f"no dataset {name!r} in {folder}/: build it with `python prepare_owt.py` (--help shows how)") from None
    except ValueError:
        raise Problem(f"{folder}/{name}/meta.json is damaged: delete the folder and prepare the dataset again") from None


def require_text(ckpt, path, name, folder=DATA):
    """Raise Problem where the checkpoint `ckpt`, read from `path`, was trained on another text than the dataset `name` holds now."""
    if ckpt.get("data") not in (None, load_meta(name, folder)["train"].get("sha256")):
        raise Problem(f"{path} was trained on another text than {name} holds now: prepare that again, or train on what it holds")


def load_tokens(name, split, folder=DATA):
    """The ids of a split as a read-only uint16 memmap; its length is checked against meta.json, and its first 10 million ids."""
    path, meta = Path(folder) / name / f"{split}.bin", load_meta(name, folder)
    if not isinstance(meta.get(split), dict) or not meta[split].get("tokens"):
        raise Problem(f"{folder}/{name}/meta.json says nothing of a {split} split: delete the folder and prepare the dataset again")
    expected = meta[split]["tokens"]
    if not path.is_file() or path.stat().st_size != 2 * expected:
        raise Problem(f"{path} is missing or not {expected:,} tokens long: delete the folder and prepare the dataset again")
    tokens = np.memmap(path, dtype=np.uint16, mode="r")
    if tokens[:10_000_000].max() >= meta["vocab_size"]:
        raise Problem(f"{path} holds ids beyond the {meta['vocab_size']:,} that meta.json names: delete the folder and prepare the dataset "
                      "again")
    return tokens


@functools.lru_cache(maxsize=2)
def _epoch_order(n, *key):
    """A permutation of n windows and a number in [0, 1), both drawn for this epoch."""
    rng = np.random.default_rng(key)
    return rng.permutation(n), rng.random()


def train_windows(tokens, length, seed, samples, eos=None):
    """Windows of the global samples (a list of ints) -> int64 array (B, length). With `eos` they are length - 2 tokens between two EOS.

    Sample g is window g mod n of epoch g // n, n = len(tokens) // length. Every epoch has its own order and its own offset, and wraps
    around the end of the file, so that it shows every token once (but for a remainder shorter than one window).
    """
    inner = length if eos is None else length - 2
    n = len(tokens) // inner
    if n == 0:
        raise Problem(f"the training split has {len(tokens)} tokens, fewer than one window of {length}: use a shorter --length")
    out = np.full((len(samples), length), eos or 0, np.int64)
    for row, g in zip(out[:, :inner] if eos is None else out[:, 1:-1], samples):
        order, offset = _epoch_order(n, seed, g // n)
        at = order[g % n] * inner + int(offset * len(tokens))
        row[:] = tokens.take(range(at, at + inner), mode="wrap")
    return out


def word_report(texts, name, length, folder=DATA):
    """How many whitespace-separated words of `texts` (a list of str) occur in the dataset `name` -> dict: the share, its standard error
    over texts, and the share in 256 validation windows of `length` tokens, which cut their first and last words as texts do."""
    tok = tokenizer(load_meta(name, folder)["tokenizer"])
    splits = {split: load_tokens(name, split, folder) for split in ("train", "val")}
    pieces = (tokens[at : at + 2**24].tolist() for tokens in splits.values() for at in range(0, len(tokens), 2**24))
    corpus = {word for piece in pieces for word in tok.decode(piece).split()}  # in pieces: OpenWebText does not fit at once

    def known(texts):  # (words, known words) of each text
        return np.array([(len(text.split()), sum(word in corpus for word in text.split())) for text in texts])

    words, hits = known(texts).T
    share = hits.sum() / max(1, words.sum())
    errors = (hits - share * words) / max(1, words.mean())  # of a ratio of means, so that long texts weigh more
    real = known(tok.decode(ids.tolist()) for ids in val_windows(splits["val"], length, 256)).sum(0)
    return {"known_words": float(share), "stderr": float(errors.std(ddof=1) / len(texts) ** 0.5) if len(texts) > 1 else math.nan,
            "known_words_of_real_text": float(real[1] / real[0]), "num_samples": len(texts), "corpus": name}


def val_windows(tokens, length, count, eos=None):
    """The first `count` windows of the validation split (fewer if it has fewer), in order -> int64 array (count, length)."""
    inner = length if eos is None else length - 2
    n = min(count, len(tokens) // inner)
    if n == 0:
        raise Problem(f"the validation split has {len(tokens)} tokens, fewer than one window of {length}: use a shorter --length")
    rows = tokens[: n * inner].reshape(n, inner).astype(np.int64)
    return rows if eos is None else np.pad(rows, ((0, 0), (1, 1)), constant_values=eos)


def spread_windows(tokens, length, count, eos=None):
    """`count` of the windows of val_windows (fewer if there are fewer), at equal distances over the whole split -> int64 array (N, L).

    The first `count` would be of a few documents, and no error over windows would show it: the first 256 of pydocs' 2,498 windows cost
    an AR model 1.67 +- 0.02 bits per byte, the first 2,048 of them 2.02 +- 0.01, and 256 that are spread 1.99 +- 0.03.
    """
    inner = length if eos is None else length - 2
    total = len(tokens) // inner
    n = max(1, min(count, total))
    starts = [i * total // n * inner for i in range(n)]
    return np.concatenate([val_windows(tokens[at:], length, 1, eos) for at in starts])
