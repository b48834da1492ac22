"""Text -> token files: OUT_DIR/NAME/{train,val}.bin (flat uint16 ids, each document closed by EOS, except in text8) and meta.json.

  python prepare_owt.py --dataset pydocs                        the corpus that every Python carries: 2 MB, seconds, no download
  python prepare_owt.py --text notes/ book.txt.gz --name mine   your own .txt, .md and .jsonl files, .gz and .xz included
  python prepare_owt.py --dataset text8                         100 MB of Wikipedia in 27 characters
  python prepare_owt.py --dataset owt --split mdlm              OpenWebText, 8 million documents; run it again to resume

One process reads documents in order, others tokenise, and the ids are appended to files in OUT_DIR/.NAME.partial, with a journal.
"""

import ast
import contextlib
import gzip
import hashlib
import http.client
import itertools
import json
import lzma
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
import sysconfig
import time
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path

from config import Problem, arg, parse, run, whole_file


@dataclass(frozen=True)
class Config:
    dataset: str = arg("", "a corpus by name", ("pydocs", "owt", "text8"))
    text: tuple[str, ...] = arg((), "your own files and folders instead: .txt, .md, .jsonl with a `text` field; also .gz, .xz")
    name: str = arg("", "the folder to write (default: named after the dataset)")
    tokenizer: str = arg("", "default: gpt2 for owt, text8 for text8, else bytes", ("bytes", "gpt2", "text8"))
    out_dir: str = arg("data", "where prepared corpora live")
    val_share: float = arg(0.15, "pydocs, --text: share of the documents that validate")
    split: str = arg("mdlm", "owt: the last 100,000 documents validate (mdlm) or 0.0005 at random (nanogpt)", ("mdlm", "nanogpt"))
    val_documents: int = arg(0, "owt: how many documents validate (0: as the split says)")
    dataset_id: str = arg("Skylion007/openwebtext", "owt: its name on the Hugging Face Hub")
    data_files: tuple[str, ...] = arg((), "owt: parquet files, folders or URLs instead; text8: a local text8.zip")
    limit_documents: int = arg(0, "read only the first documents, for a try (0: all)")
    workers: int = arg(0, "processes that tokenise (0: one per core)")

    def __post_init__(self):
        given = {f.name for f in fields(self) if getattr(self, f.name) != f.default} - {"dataset", "text", "name", "tokenizer"}
        stray = given - {"out_dir", "workers"} - {
            "owt": {"split", "val_documents", "dataset_id", "data_files", "limit_documents"},
            "text8": {"data_files"}}.get(self.dataset, {"val_share", "limit_documents"})
        for bad, message in (
                (bool(self.dataset) == bool(self.text), "give either --dataset (pydocs, owt, text8) or --text FILE_OR_FOLDER..."),
                (not re.fullmatch(r"\w[\w.-]*", self.name or self.dataset), "--name: a plain folder name (--text needs one)"),
                ("" in self.text, "--text holds an empty name: is a variable of the shell unset?"),
                (stray, f"--{' --'.join(sorted(stray))} says nothing to {self.dataset or '--text'}"),
                (self.dataset == "text8" and self.tokenizer not in ("", "text8"), "--dataset text8 has its own tokenizer"),
                (not 0 < self.val_share < 1, "--val_share must lie between 0 and 1"),
                (min(self.val_documents, self.limit_documents, self.workers) < 0, "--workers, --*_documents: no number below 0")):
            if bad:
                raise ValueError(message)
        object.__setattr__(self, "name", self.name or self.dataset)  # frozen for everyone else
        object.__setattr__(self, "tokenizer", self.tokenizer or {"owt": "gpt2", "text8": "text8"}.get(self.dataset, "bytes"))


def parse_args(argv=None):
    return parse(Config, argv, description=__doc__)


CFG = parse_args() if __name__ == "__main__" else None  # before numpy, so that a typo is told at once

import numpy as np
from tqdm import tqdm

from data import EOS, sha256, tokenizer

SPLITS = ("train", "val", "test")
BATCH = 1 << 22  # characters that a process tokenises at a time; an interruption costs two of these per worker
TEXTS = tuple(kind + packed for kind in (".txt", ".md", ".jsonl") for packed in ("", ".gz", ".xz"))
FEW = 20  # fewer .txt and .md files are too coarse to split: they are cut at blank lines, else line ends, spaces, anywhere
CUT = re.compile("|".join(r"[\s\S]{10000,20000}?" + end for end in (r"\n[ \t\r]*\n", r"\n", " ")) + r"|[\s\S]{1,20000}")
PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--", "…": "..."})
TEXT8_URL, TEXT8_MD5, TEXT8_LENGTH = "http://mattmahoney.net/dc/text8.zip", "3bea1919949baf155f99411df5fada7e", 100_000_000


# A source returns its description, the files it reads, the number of its documents, and an iterator over them.
def pydocs(cfg):
    """The embedded corpus: a document per page of the Language Reference and per module's docstrings, 2 MB of plain text.

    Modules are parsed, never imported, and tests left out. The Reference repeats whole sections and docstrings are inherited by
    copying, so a paragraph counts once: otherwise training would see much of the validation split.
    """
    from pydoc_data.topics import topics  # half a megabyte that nothing else needs
    pages, seen, documents = [topics[key] for key in sorted(topics)], set(), []
    root, tests = Path(sysconfig.get_path("stdlib")), {"test", "tests", "idle_test", "site-packages", "dist-packages"}
    for path in sorted(path for path in root.rglob("*.py") if not tests & set(path.relative_to(root).parts)):
        nodes = [node for node in ast.walk(ast.parse(path.read_bytes()))
                 if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]
        nodes.sort(key=lambda node: getattr(node, "lineno", 0))  # walk goes level by level
        pages.append("\n\n".join(filter(None, map(ast.get_docstring, nodes))))
    for page in pages:
        paragraphs = (p.strip("\n") for p in re.split(r"\n\s*\n", page.translate(PLAIN)))
        fresh = [p for p in dict.fromkeys(paragraphs) if p and p not in seen]
        seen.update(fresh)
        if sum(map(len, fresh)) >= 200:  # most shorter ones name a codec and no more
            documents.append("\n\n".join(fresh) + "\n")
    return f"Python {sys.version.split()[0]}: its language reference and docstrings", [], len(documents), iter(documents)


def find(entries, endings):
    """The files that `entries` name, each once, in that order; a folder stands for all files under it, sorted. Problem: none."""
    files = {}  # by their real places: a document that came twice might be trained on and validated with
    for entry in map(Path, entries):
        paths = [entry] if entry.is_file() else sorted(path for path in entry.rglob("*") if path.is_file())
        if not (found := [str(path) for path in paths if path.name.endswith(endings)]):
            raise Problem(f"{entry}: no such file or folder, or nothing in it that ends in {', '.join(endings)}")
        for path in found:
            files.setdefault(os.path.realpath(path), path)
    return list(files.values())


def texts(cfg):
    """The user's files: a document per line of .jsonl and per .txt or .md file, the latter cut when they are FEW."""
    files = find(cfg.text, TEXTS)
    cut = sum(".jsonl" not in os.path.basename(path) for path in files) < FEW
    count, documents = (itertools.chain.from_iterable(read_text(path, cut) for path in files) for _ in range(2))
    return " ".join(cfg.text), files, sum(1 for _ in count), documents  # counting them also checks them all


def read_text(path, cut):
    """Yield the documents of one file. Problem: not UTF-8, empty, damaged, or a line of jsonl without a text."""
    jsonl, empty = ".jsonl" in os.path.basename(path), True
    try:
        with {".gz": gzip.open, ".xz": lzma.open}.get(path[-3:], open)(path, "rb") as file:
            for line, raw in enumerate(file if jsonl else [file.read()], 1):
                if (text := raw.decode("utf-8-sig")).strip():
                    empty, where = False, f"{path}, line {line}"
                    yield from [json.loads(text)["text"].encode().decode()] if jsonl else CUT.findall(text) if cut else [text]
    except UnicodeDecodeError:
        raise Problem(f"{path} is not UTF-8 text: convert it first, for example with iconv") from None
    except (ValueError, KeyError, TypeError, AttributeError):  # half a surrogate pair included: tiktoken would replace it unseen
        raise Problem(f"{where}: expected a JSON object whose `text` is a string of whole characters") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise Problem(f"{path} cannot be read ({error}): mend it or leave it out") from None
    if empty:
        raise Problem(f"{path} is empty: leave it out")


def parquet(cfg):
    """OpenWebText, or any parquet files with a column `text`; read in small pieces, however large their row groups are."""
    local = cfg.data_files and "://" not in "".join(cfg.data_files)
    try:
        import pyarrow.parquet as pq
        if not local:
            import datasets
    except ImportError as error:
        raise Problem(f"--dataset owt needs {error.name}: pip install {error.name}") from None
    files, rows = find(cfg.data_files, (".parquet",)) if local else download(cfg, datasets), []
    for path in files:
        try:
            footer = pq.read_metadata(path)
            footer.schema.names.index("text")
            rows.append(footer.num_rows)
        except (ValueError, OSError):
            raise Problem(f"{path} is not a whole parquet file with a column `text`: fetch it again") from None
    if sum(rows) != 8_013_769:
        print(f"warning: these are {sum(rows):,} documents; all of OpenWebText is 8,013,769")

    def read():
        for path in files:
            file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)  # else it would load whole row groups
            for batch in file.iter_batches(1024, columns=["text"], use_threads=False):
                yield from (text or "" for text in batch.column(0).to_pylist())

    return " ".join(cfg.data_files) or cfg.dataset_id, files, sum(rows), read()


def download(cfg, datasets):
    """The dataset's parquet files, or the URLs, fetched into the cache of `datasets` (load_dataset would add 40 GB of Arrow)."""
    what, files = " ".join(cfg.data_files) or cfg.dataset_id, list(cfg.data_files)
    print(f"downloading {what} into the cache of `datasets`", flush=True)
    try:
        try:
            builder = datasets.load_dataset_builder("parquet" if files else what, data_files=files or None)
        except RuntimeError:  # the repository still holds a loading script: take the Hub's own conversion
            builder = datasets.load_dataset_builder(what, revision="refs/convert/parquet")
        return [str(path) for path in datasets.DownloadManager().download(list(builder.config.data_files["train"]))]
    except Exception as error:  # each layer below raises a family of its own
        raise Problem(f"cannot fetch {what} ({type(error).__name__}: {' '.join(str(error).split())[:120]}): check the name and "
                      "the network, or bring its parquet files and name them by --data_files") from error


def text8(cfg):
    """The first 100 million characters of cleaned Wikipedia, as 10,000 pieces; downloaded once, to OUT_DIR/text8.zip."""
    path = Path(find(cfg.data_files, (".zip",))[0] if cfg.data_files else os.path.join(cfg.out_dir, "text8.zip"))
    if not path.exists():
        print(f"downloading {TEXT8_URL} (31 MB) to {path}", flush=True)
        try:
            packed = urllib.request.urlopen(TEXT8_URL, timeout=60).read()
        except (OSError, http.client.HTTPException) as error:
            raise Problem(f"cannot download {TEXT8_URL} ({error}): fetch it elsewhere and put it at {path}") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(packed)
    if (hashlib.md5(path.read_bytes()).hexdigest() != TEXT8_MD5
            or len(text := zipfile.ZipFile(path).read("text8").decode("ascii")) != TEXT8_LENGTH):
        raise Problem(f"{path} is not the text8.zip that everyone uses (md5 {TEXT8_MD5}): delete it and fetch it again")
    return TEXT8_URL, [str(path)], len(text) // 10_000, (text[i:i + 10_000] for i in range(0, len(text), 10_000))


def split(cfg, n):
    """Where each of n documents goes (an array of 0 train, 1 val, 2 test) and the rule in words."""
    to = np.zeros(n, np.uint8)
    if cfg.dataset == "text8":
        to[n * 90 // 100:], to[n * 95 // 100:] = 1, 2
        return to, "text8: the first 90M characters train, 5M validate, 5M test; 10,000 characters count as a document"
    if cfg.dataset == "owt" and cfg.split == "mdlm":
        k = cfg.val_documents or 100_000
        chosen, rule = slice(max(0, n - k), n), f"mdlm: the last {k:,} documents validate"
    else:  # nanogpt: the documents that `datasets`' train_test_split draws with nanoGPT's seed, here left in their order
        name, share, seed = ("nanogpt", 0.0005, 2357) if cfg.dataset == "owt" else ("random", cfg.val_share, 0)
        k = cfg.val_documents or int(np.ceil(share * n))
        chosen, rule = np.random.default_rng(seed).permutation(n)[:k], f"{name}: {k:,} documents drawn by seed {seed} validate"
    if not 0 < k < n:
        less = "pass --val_documents N" if cfg.dataset == "owt" else "lower --val_share"
        raise Problem(f"{n:,} documents are too few to train on when {k:,} validate: give more text, or {less}")
    to[chosen] = 1
    return to, rule


def encode(name, documents):
    """Tokenise a list of documents: -> ids (uint16), and per document its tokens (with EOS) and UTF-8 bytes (without)."""
    enc = tokenizer(name)
    if name == "text8" and (odd := re.search("(?s)[^ a-z].{0,20}", "".join(documents))):  # tiktoken would panic
        raise Problem(f"the tokenizer text8 spells a-z and space, not the first character of {odd[0]!r}: clean the text first")
    end = [enc.eot_token] if EOS in enc.special_tokens_set else []
    ids = [np.array(x + end, np.uint16) for x in enc.encode_ordinary_batch(documents, num_threads=1)]
    return np.concatenate(ids), np.array([len(x) for x in ids]), np.array([len(text.encode()) for text in documents])


def encode_all(name, documents, workers):
    """Yield `encode` of batch after batch, in order. Two per worker are in flight, so memory does not grow with the corpus."""
    documents, again = itertools.tee(documents)
    numbered = zip(documents, itertools.accumulate(map(len, again)))  # (document, characters so far)
    batches = ([text for text, _ in group] for _, group in itertools.groupby(numbered, lambda pair: pair[1] // BATCH))
    if workers == 1:
        return (yield from (encode(name, batch) for batch in batches))
    # workers leave Ctrl-C to this process, and end with it; a batch takes them a second, so ten minutes mean that one was killed
    with multiprocessing.get_context("spawn").Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        pending = []
        try:
            for batch in batches:
                pending.append(pool.apply_async(encode, (name, batch)))
                if len(pending) == 2 * workers:
                    yield pending.pop(0).get(600)
            yield from (job.get(600) for job in pending)
        except multiprocessing.TimeoutError:
            raise OSError("a worker died, perhaps for lack of memory: run the same with fewer --workers to go on") from None


def resume(work, stamp, names):
    """The journal that an interrupted run over the same input left in `work`, its files cut back to it; else an empty one."""
    with contextlib.suppress(OSError, ValueError, KeyError):  # no journal, or not one of ours
        journal = json.loads((work / "journal.json").read_bytes())
        if journal["stamp"] == stamp:
            for name, tokens in zip(names, journal["tokens"]):
                os.truncate(work / f"{name}.bin", 2 * tokens)
            return journal
    for path in work.iterdir():
        path.unlink()
    return {"stamp": stamp, "done": 0, "tokens": [0] * len(names), "bytes": [0] * len(names)}


def tokenise(cfg, documents, to, names, journal, work):
    """Append the ids of `documents`, the first of which is number journal["done"], to work/*.bin; the journal counts them."""
    with tqdm(total=len(to), initial=journal["done"], unit=" documents") as bar:
        for ids, lengths, sizes in encode_all(cfg.tokenizer, documents, cfg.workers or os.cpu_count()):
            where = to[journal["done"]:journal["done"] + len(lengths)]
            for i, name in enumerate(names):
                with open(work / f"{name}.bin", "ab") as file:
                    if file.tell() != 2 * journal["tokens"][i]:
                        raise OSError(f"{file.name} changed meanwhile: is a second process preparing {cfg.name}?")
                    file.write(ids[np.repeat(where == i, lengths)].astype("<u2").tobytes())
                    file.flush()
                    os.fsync(file.fileno())
                journal["tokens"][i] += int(lengths[where == i].sum())
                journal["bytes"][i] += int(sizes[where == i].sum())
            journal["done"] += len(lengths)
            with whole_file(work / "journal.json") as file:
                file.write(json.dumps(journal).encode())
            bar.update(len(lengths))


def publish(work, target):
    """Give the finished folder its name, in place of an older one."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    work.rename(target)
    (target / "journal.json").unlink()  # only now: a run killed above finds it and finishes
    shutil.rmtree(old, ignore_errors=True)


def main(cfg):
    """Prepare the corpus that `cfg` describes. A Problem leaves nothing new; after an interruption, run it again to resume."""
    begin, enc = time.monotonic(), tokenizer(cfg.tokenizer)
    if enc.n_vocab > 1 << 16:
        raise Problem(f"the tokenizer {cfg.tokenizer} has {enc.n_vocab:,} ids, more than the 65,536 that 16 bits can tell apart")
    print(f"reading {cfg.dataset or ' '.join(cfg.text)}", flush=True)
    about, files, n, documents = {"pydocs": pydocs, "owt": parquet, "text8": text8, "": texts}[cfg.dataset](cfg)
    target = Path(os.path.realpath(folder)) if (folder := Path(cfg.out_dir, cfg.name)).is_symlink() else folder
    work = target.with_name(f".{target.name}.partial")
    ours = {"meta.json", "journal.json", *(f"{name}.bin" for name in SPLITS)}
    if target.exists() and (others := {path.name for path in target.iterdir()} - ours):
        raise Problem(f"{target} would be replaced, and holds {min(others)}, which is no part of a dataset: choose another --name")
    to, rule = split(cfg, min(n, cfg.limit_documents or n))
    names = SPLITS[:to.max() + 1]
    inputs = [(os.path.abspath(path), os.stat(path).st_size, os.stat(path).st_mtime) for path in files]
    meta = {"name": cfg.name, "tokenizer": cfg.tokenizer, "vocab_size": enc.n_vocab, "split": rule, "source": about,
            "eos": enc.eot_token if EOS in enc.special_tokens_set else None,
            "command": shlex.join(["python", "prepare_owt.py", *sys.argv[1:]]), "python": sys.version.split()[0]}
    work.mkdir(parents=True, exist_ok=True)
    try:
        journal = resume(work, hashlib.sha256(repr((about, cfg.tokenizer, rule, len(to), inputs)).encode()).hexdigest(), names)
        start, before = journal["done"], sum(journal["tokens"])
        print(f"tokenising documents {start:,} to {len(to):,} with {cfg.tokenizer} into {work}; split {rule}", flush=True)
        tokenise(cfg, itertools.islice(documents, start, len(to)), to, names, journal, work)
        for i, name in enumerate(names):
            meta[name] = {"tokens": journal["tokens"][i], "documents": int((to == i).sum()), "bytes": journal["bytes"][i],
                          "sha256": sha256(work / f"{name}.bin")}
            print("{}: {tokens:,} tokens, {documents:,} documents, {bytes:,} bytes".format(name, **meta[name]))
    except Problem:
        shutil.rmtree(work)
        raise
    with whole_file(work / "meta.json") as file:
        file.write(json.dumps(meta, indent=1).encode())
    publish(work, target)
    seconds, new = time.monotonic() - begin, sum(journal["tokens"]) - before
    print(f"saved {target} in {seconds:.1f} s ({new:,} new tokens, {new / seconds:,.0f} a second)")


if __name__ == "__main__":
    run(lambda: main(CFG))
