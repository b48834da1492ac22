"""prepare_owt: documents come back whatever held them, nothing is ever half-written, and a resumed run is the same run."""

import ast
import gzip
import hashlib
import itertools
import json
import lzma
import os
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import data
import prepare_owt
from config import Problem, run

ROOT = Path(__file__).resolve().parent.parent
WORDS = "Grüße aus Köln, 世界! The quick brown fox jumps over the lazy dog <|endoftext|> \t 0123".split(" ")
DOCUMENTS = [" ".join(itertools.islice(itertools.cycle(WORDS), i % 7, 5 + 3 * i)) + "\n" * (i % 3) for i in range(40)]


def prepare(*flags, out, workers=1):
    """Run one preparation; -> its folder."""
    cfg = prepare_owt.parse_args([*map(str, flags), "--out_dir", str(out), "--workers", str(workers)])
    prepare_owt.main(cfg)
    return Path(out, cfg.name)


def decode(folder, split):
    """The documents of a split."""
    meta = json.loads((folder / "meta.json").read_text())
    ids = np.fromfile(folder / f"{split}.bin", dtype="<u2")
    assert len(ids) == meta[split]["tokens"] and ids[-1] == meta["eos"] and ids.max() < meta["vocab_size"]
    assert hashlib.sha256(ids.tobytes()).hexdigest() == meta[split]["sha256"]
    ends = np.flatnonzero(ids == meta["eos"])
    documents = [data.tokenizer(meta["tokenizer"]).decode(part[:-1].tolist()) for part in np.split(ids, ends + 1)[:-1]]
    assert len(documents) == meta[split]["documents"]
    assert sum(len(text.encode()) for text in documents) == meta[split]["bytes"]
    return documents


def contents(folder):
    return {name: (folder / name).read_bytes() for name in ("train.bin", "val.bin")}


def jsonl(path, documents=DOCUMENTS):
    path.write_text("".join(json.dumps({"text": text, "other": 1}) + "\n" for text in documents))
    return path


def parquet(folder, documents=DOCUMENTS, column="text"):
    """Two parquet files with row groups of 7."""
    pyarrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder.mkdir()
    for i, part in enumerate((documents[:15], documents[15:])):
        pq.write_table(pyarrow.table({"id": range(len(part)), column: part}), folder / f"part{i}.parquet", row_group_size=7)
    return folder


@pytest.fixture
def gpt2(monkeypatch):
    cache = ROOT.parent / "shared" / "tiktoken_cache"
    if cache.is_dir():
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    try:
        return data.tokenizer("gpt2")
    except Problem:
        pytest.skip("GPT-2's vocabulary is not on this machine")


# ---- what is written ----

def test_documents_come_back_from_a_disjoint_and_repeatable_split(tmp_path):
    source = jsonl(tmp_path / "a.jsonl")
    folder = prepare("--text", source, "--name", "a", "--val_share", 0.2, out=tmp_path / "one")
    train, val = decode(folder, "train"), decode(folder, "val")
    assert len(val) == 8 and not set(train) & set(val)
    assert sorted(train + val) == sorted(DOCUMENTS)
    assert train == [text for text in DOCUMENTS if text in set(train)]  # and in order
    assert contents(prepare("--text", source, "--name", "a", "--val_share", 0.2, out=tmp_path / "two")) == contents(folder)
    meta = json.loads((folder / "meta.json").read_text())
    assert {"name", "tokenizer", "vocab_size", "eos", "split", "source", "command", "python", "train", "val"} == set(meta)
    assert sorted(os.listdir(folder)) == ["meta.json", "train.bin", "val.bin"] and os.listdir(tmp_path / "one") == ["a"]


@pytest.mark.parametrize("kind", ["folder of .txt", "folder of .md.gz", ".jsonl.gz", ".jsonl.xz", "three .jsonl"])
def test_the_container_does_not_change_the_tokens(tmp_path, kind):
    expected = contents(prepare("--text", jsonl(tmp_path / "plain.jsonl"), "--name", "x", out=tmp_path / "expected"))
    source = tmp_path / "source"
    (source / "b").mkdir(parents=True)
    pack = {"gz": gzip.compress, "xz": lzma.compress}.get(kind[-2:], bytes)
    if kind.startswith("folder"):
        for i, text in enumerate(DOCUMENTS):
            (source / f"{'b/' if i else ''}{i:02}{kind[10:]}").write_bytes(pack(text.encode()))
    elif kind == "three .jsonl":
        for i, (a, b) in enumerate(((0, 1), (1, 30), (30, 40))):
            jsonl(source / f"{i}.jsonl", DOCUMENTS[a:b])
    else:
        (source / f"all{kind}").write_bytes(pack((tmp_path / "plain.jsonl").read_bytes()))
    (source / "picture.png").write_bytes(b"\xff\xd8 not text, and not asked for")
    assert contents(prepare("--text", source, "--name", "x", out=tmp_path / "got")) == expected


def test_parquet_gives_the_tokens_of_jsonl(tmp_path):
    folder = prepare("--dataset", "owt", "--data_files", parquet(tmp_path / "p"), "--tokenizer", "bytes", "--val_documents", 8,
                     "--name", "x", out=tmp_path / "got")
    assert decode(folder, "train") == DOCUMENTS[:-8] and decode(folder, "val") == DOCUMENTS[-8:]  # the last ones: MDLM's split
    text = prepare("--text", jsonl(tmp_path / "a.jsonl"), "--name", "x", out=tmp_path / "text")
    assert sorted(decode(text, "train") + decode(text, "val")) == sorted(DOCUMENTS)
    files = sorted(map(str, (tmp_path / "p").iterdir()))
    flags = "--dataset", "owt", "--tokenizer", "bytes", "--val_documents", 8, "--limit_documents", 20
    assert decode(prepare(*flags, "--data_files", *files, out=tmp_path / "limited"), "val") == DOCUMENTS[12:20]


def test_nanogpt_split_validates_the_documents_that_datasets_would_draw():
    cfg = prepare_owt.parse_args(["--dataset", "owt", "--split", "nanogpt"])
    to, _ = prepare_owt.split(cfg, 7000)  # below: datasets 5.2, train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    assert np.flatnonzero(to).tolist() == [1786, 1997, 3416, 4195]
    assert prepare_owt.split(cfg, 8_013_769)[0].sum() == 4007


def test_a_single_long_text_is_cut_at_blank_lines(tmp_path):
    text = "".join(f"Line {i} of a long text.\n" + "\n" * (i % 40 == 0) for i in range(6000))
    (tmp_path / "long.txt").write_text(text)
    documents = list(prepare_owt.read_text(str(tmp_path / "long.txt"), cut=True))
    assert "".join(documents) == text and len(documents) > 5
    assert all(10_000 <= len(d) <= 20_000 and d.endswith("\n\n") for d in documents[:-1])
    assert all(len(d) <= 20_000 for d in prepare_owt.CUT.findall("x" * 50_000))
    assert decode(prepare("--text", tmp_path / "long.txt", "--name", "x", out=tmp_path), "val")[0] in documents


def test_gpt2_ids_end_with_eos_and_do_not_depend_on_workers(tmp_path, gpt2, monkeypatch):
    flags = "--text", jsonl(tmp_path / "a.jsonl"), "--name", "x", "--tokenizer", "gpt2"
    folder = prepare(*flags, out=tmp_path / "one")
    assert sorted(decode(folder, "train") + decode(folder, "val")) == sorted(DOCUMENTS)
    first = np.fromfile(folder / "val.bin", dtype="<u2").tolist()
    first = first[:first.index(50256)]
    assert first == gpt2.encode_ordinary(gpt2.decode(first))  # and "<|endoftext|>" inside a document is text
    monkeypatch.setattr(prepare_owt, "BATCH", 1000)
    assert contents(prepare(*flags, out=tmp_path / "two", workers=2)) == contents(folder)


def test_text8_is_cut_into_90_5_5(tmp_path, monkeypatch):
    text = "".join(itertools.islice(itertools.cycle("the quick brown fox jumps over the lazy dog "), 1_000_000))
    with zipfile.ZipFile(tmp_path / "text8.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("text8", text)
    monkeypatch.setattr(prepare_owt, "TEXT8_MD5", hashlib.md5((tmp_path / "text8.zip").read_bytes()).hexdigest())
    with pytest.raises(Problem, match="text8.zip that everyone uses"):  # the right archive with a text of the wrong length
        prepare("--dataset", "text8", out=tmp_path)
    monkeypatch.setattr(prepare_owt, "TEXT8_LENGTH", len(text))
    folder = prepare("--dataset", "text8", out=tmp_path)  # finds OUT_DIR/text8.zip
    parts = [np.fromfile(folder / f"{name}.bin", dtype="<u2") for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [900_000, 50_000, 50_000]
    assert data.tokenizer("text8").decode(np.concatenate(parts).tolist()) == text
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["vocab_size"] == 27 and meta["eos"] is None


def test_pydocs_is_clean_repeatable_and_without_tests(tmp_path):
    script = [sys.executable, ROOT / "prepare_owt.py", "--dataset", "pydocs"]
    subprocess.run(script, cwd=tmp_path, check=True, capture_output=True)  # in another process, so with other hashes
    train, val = decode(tmp_path / "data" / "pydocs", "train"), decode(tmp_path / "data" / "pydocs", "val")
    assert 1_000_000 < sum(map(len, train + val)) < 4_000_000
    documents = list(prepare_owt.pydocs(None)[3])
    assert [text for text in documents if text not in val] == train and sorted(documents) == sorted(train + val)
    seen = {p for text in train for p in text.split("\n\n")}
    assert not any(p in seen for text in val for p in text.split("\n\n") if len(p) > 60)
    corpus = "\n".join(train + val)
    assert 'The "assert" statement' in corpus and "Return random integer in range [a, b]" in corpus
    for path in Path(sysconfig.get_path("stdlib"), "test").glob("test_[a-d]*.py"):  # some systems leave this folder out
        about = (ast.get_docstring(ast.parse(path.read_bytes())) or "").split("\n\n")[0]
        assert len(about) < 30 or about not in corpus, path


# ---- interruptions ----

@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_resumed_preparation_is_the_uninterrupted_one(tmp_path, monkeypatch, interruption):
    flags = "--text", jsonl(tmp_path / "a.jsonl"), "--name", "x"
    monkeypatch.setattr(prepare_owt, "BATCH", 500)
    whole, encode, seen = prepare(*flags, out=tmp_path / "whole"), prepare_owt.encode, []

    def fragile(name, documents):
        if len(seen) in (4, 9):
            seen.append(None)
            raise interruption
        seen.append(documents)
        return encode(name, documents)

    monkeypatch.setattr(prepare_owt, "encode", fragile)
    for _ in range(2):
        with pytest.raises((KeyboardInterrupt, OSError)):
            prepare(*flags, out=tmp_path / "cut")
        assert os.listdir(tmp_path / "cut") == [".x.partial"]
        with open(tmp_path / "cut" / ".x.partial" / "train.bin", "ab") as file:
            file.write(b"torn")  # what a kill between a write and its journal leaves
    resumed = prepare(*flags, out=tmp_path / "cut")
    assert contents(resumed) == contents(whole) and os.listdir(tmp_path / "cut") == ["x"]
    assert sum(map(len, filter(None, seen))) == len(DOCUMENTS)  # nothing was tokenised twice


def test_another_input_does_not_resume(tmp_path, monkeypatch):
    flags, encode, calls = ("--text", jsonl(tmp_path / "a.jsonl"), "--name", "x"), prepare_owt.encode, itertools.count()
    monkeypatch.setattr(prepare_owt, "BATCH", 500)
    monkeypatch.setattr(prepare_owt, "encode", lambda *a: encode(*a) if next(calls) != 4 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(*flags, out=tmp_path / "o")
    jsonl(tmp_path / "a.jsonl", DOCUMENTS[::-1])
    folder = prepare(*flags, out=tmp_path / "o")
    assert sorted(decode(folder, "train") + decode(folder, "val")) == sorted(DOCUMENTS)


def test_a_second_process_on_the_same_folder_is_noticed(tmp_path, monkeypatch):
    def encode(name, documents, original=prepare_owt.encode):
        (tmp_path / ".x.partial" / "val.bin").write_bytes(b"its tokens")
        return original(name, documents)

    monkeypatch.setattr(prepare_owt, "encode", encode)
    with pytest.raises(OSError, match="second process preparing x"):
        prepare("--text", jsonl(tmp_path / "a.jsonl"), "--name", "x", out=tmp_path)


def test_kill_9_with_workers_then_resume(tmp_path):
    source = jsonl(tmp_path / "a.jsonl")
    whole = prepare("--text", source, "--name", "x", out=tmp_path / "whole")
    flags = ["--text", str(source), "--name", "x", "--out_dir", str(tmp_path / "cut"), "--workers", "2"]
    slow = ("import os, sys, time; sys.path.insert(0, sys.argv.pop(1)); import prepare_owt as p; p.BATCH = 500; fsync = os.fsync\n"
            "os.fsync = lambda f: (fsync(f), time.sleep(0.1)); p.main(p.parse_args(sys.argv[1:]))")
    child = subprocess.Popen([sys.executable, "-c", slow, ROOT, *flags], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    journal, until = tmp_path / "cut" / ".x.partial" / "journal.json", time.monotonic() + 20
    while not journal.exists() and time.monotonic() < until:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert 0 < json.loads(journal.read_text())["done"] < len(DOCUMENTS)
    assert contents(prepare("--text", source, "--name", "x", out=tmp_path / "cut")) == contents(whole)


# ---- faults ----

FAULTS = {  # name and content of the file at PATH, the flags, and words of the message
    "missing": (None, "--text PATH", "no such file or folder"),
    "another kind of file": (("a.docx", b"text"), "--text PATH", "nothing in it that ends in .txt"),
    "empty": (("a.txt", b" \n"), "--text PATH", "a.txt is empty"),
    "not UTF-8": (("a.txt", "Grüße".encode("latin-1")), "--text PATH", "a.txt is not UTF-8"),
    "UTF-16": (("a.md", "text".encode("utf-16")), "--text PATH", "a.md is not UTF-8"),
    "cut gzip": (("a.txt.gz", gzip.compress(b"text" * 1000)[:-9]), "--text PATH", "a.txt.gz cannot be read"),
    "no xz": (("a.jsonl.xz", b"text"), "--text PATH", "a.jsonl.xz cannot be read"),
    "bad json": (("a.jsonl", b'{"text": "a"}\n{"text": "b"\n'), "--text PATH", "a.jsonl, line 2: expected a JSON object"),
    "no text in json": (("a.jsonl", b'{"text": "a"}\n\n{"txt": "b"}\n'), "--text PATH", "line 3: expected a JSON object"),
    "a number in json": (("a.jsonl", b'{"text": 1}\n'), "--text PATH", "line 1: expected a JSON object"),
    "half a character": (("a.jsonl", b'{"text": "\\ud800"}\n'), "--text PATH", "whole characters"),
    "one document": (("a.txt", b"text"), "--text PATH", "too few"),
    "text8 and a capital": (("a.jsonl", b'{"text": "a"}\n{"text": "the End"}'), "--text PATH --tokenizer text8", "'End'"),
    "parquet missing": (None, "--dataset owt --tokenizer bytes --data_files PATH", "no such file or folder"),
    "parquet cut": (("a.parquet", b"PAR1 and no more"), "--dataset owt --tokenizer bytes --data_files PATH", "not a whole"),
    "wrong zip": (("text8.zip", b"PK"), "--dataset text8 --data_files PATH", "text8.zip that everyone uses"),
}


def refused(*flags, out):
    """The one sentence with which a run ends in exit status 1."""
    with pytest.raises(SystemExit) as stop:
        run(lambda: prepare(*flags, out=out))
    assert isinstance(stop.value.code, str) and stop.value.code.startswith("error: ") and "\n" not in stop.value.code
    return stop.value.code


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("earlier", [False, True])
def test_a_fault_is_one_sentence_and_leaves_nothing(tmp_path, fault, earlier):
    if "parquet" in fault:
        pytest.importorskip("pyarrow")
    held, flags, words = FAULTS[fault]
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / (held[0] if held else "missing")
    if held:
        path.write_bytes(held[1])
    out = tmp_path / "out"
    before = contents(prepare("--text", jsonl(tmp_path / "good.jsonl"), "--name", "x", out=out)) if earlier else None
    assert words in refused(*(str(path) if f == "PATH" else f for f in flags.split()), "--name", "x", out=out)
    assert sorted(p.name for p in out.glob("*")) == (["x"] if earlier else []) and not list(out.glob(".*"))
    assert not earlier or contents(out / "x") == before


@pytest.mark.parametrize("held", [[], ["train.bin", "val.bin", "meta.json"]])
def test_texts_that_lie_where_the_dataset_would_are_kept(tmp_path, held):
    (folder := tmp_path / "mine").mkdir()
    for name in ("a.txt", *held):
        (folder / name).write_text("one\n\ntwo\n\n" * 9)
    assert "holds a.txt, which is no part" in refused("--text", str(folder / "a.txt"), "--name", "mine", out=tmp_path)
    assert (folder / "a.txt").exists() and not list(tmp_path.glob(".*"))


def test_parquet_without_text_or_with_too_few_documents(tmp_path, capsys):
    flags = "--dataset", "owt", "--tokenizer", "bytes", "--data_files"
    assert "with a column `text`" in refused(*flags, parquet(tmp_path / "p", column="body"), out=tmp_path / "o")
    message = refused(*flags, parquet(tmp_path / "q"), out=tmp_path / "o")
    assert "pass --val_documents N" in message and not (tmp_path / "o").exists()
    assert "warning: these are 40 documents" in capsys.readouterr().out


def test_a_vocabulary_over_16_bits_and_a_failed_download(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_owt, "TEXT8_URL", "http://127.0.0.1:9/text8.zip")
    message = refused("--dataset", "text8", out=tmp_path / "o")
    assert f"put it at {tmp_path}/o/text8.zip" in message and not (tmp_path / "o").exists()
    monkeypatch.setattr(prepare_owt, "tokenizer", lambda name: type("Big", (), {"n_vocab": 65_537}))
    assert "65,536" in refused("--dataset", "pydocs", out=tmp_path / "o") and not (tmp_path / "o").exists()


@pytest.mark.parametrize("flags", [
    "", "--dataset pydocs --text a", "--text a", "--text a --name b/c", "--text a --name ..", "--dataset moon",
    "--dataset pydocs --split nanogpt", "--text a --name b --data_files c", "--dataset text8 --tokenizer gpt2",
    "--dataset pydocs --val_share 1.5", "--dataset owt --workers -1", "--dataset owt --tokenizer x", "--dataset owt --val 3"])
def test_a_bad_command_line_is_one_line_and_status_2(capsys, flags):
    with pytest.raises(SystemExit) as stop:
        prepare_owt.parse_args(flags.split())
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_exit_statuses_of_the_script(tmp_path):
    script = [sys.executable, ROOT / "prepare_owt.py"]
    for flags, status in (("--dataset pydocs --val_share 2", 2), ("--text nowhere --name x", 1)):
        ended = subprocess.run([*script, *flags.split()], cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == status and ended.stderr.count("\n") == 1 and not os.listdir(tmp_path)


def test_memory_is_flat(tmp_path):
    """40 MB more of text take less than 20 MB in the largest process: -9 to 7, or 37 if it kept them, 100 if it read on while others are at
    work. A small process starts it, as each counts for its own peak what the one had that started it, and this one has torch."""
    def peak(documents):
        file = tmp_path / f"{documents}.jsonl"
        file.write_text(f"{json.dumps({'text': 'A dull sentence, again. ' * 420})}\n" * documents)
        script = [sys.executable, ROOT / "prepare_owt.py", "--text", file, "--name", file.stem, "--out_dir", tmp_path, "--workers", "2"]
        start = "import os, subprocess as s, sys; _, *x = os.wait4(s.Popen(sys.argv[1:], stdout=2).pid, 0); print(x[0], x[1].ru_maxrss)"
        ended = subprocess.run([sys.executable, "-c", start, *script], capture_output=True, text=True)
        status, kilobytes = map(int, ended.stdout.split())
        assert status == 0, ended.stderr
        return kilobytes

    assert peak(6000) < peak(2000) + 20_000
