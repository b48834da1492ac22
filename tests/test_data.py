"""Tokenizers and windows."""

import json
import math

import numpy as np
import pytest

import prepare_owt
from config import Problem
from data import load_tokens, tokenizer, train_windows, val_windows, word_report

BYTES = {"tokenizer": "bytes", "vocab_size": 257, "eos": 256}


def test_tokenizers_round_trip():
    text = "Grüße, 世界!\n\ttwo  spaces\x00"
    tok = tokenizer("bytes")
    assert tok.encode_ordinary(text) == list(text.encode()) and tok.decode(tok.encode_ordinary(text)) == text
    assert tok.n_vocab == 257 and tok.eot_token == 256
    tok = tokenizer("text8")
    assert tok.encode_ordinary("a zebra") == [1, 0, 26, 5, 2, 18, 1] and tok.n_vocab == 27
    with pytest.raises(Problem, match="unknown tokenizer"):
        tokenizer("klingon")


@pytest.mark.parametrize("length", [7, 10])
def test_an_epoch_shows_every_token_once_in_its_own_order(length):
    tokens = np.arange(100, dtype=np.uint16)
    n = 100 // length
    epochs = [train_windows(tokens, length, 0, range(e * n, e * n + n)) for e in range(3)]
    for windows in epochs:
        shown = np.sort(windows.ravel())
        assert len(np.unique(shown)) == n * length  # none twice; a remainder shorter than a window is left out
        assert ((np.diff(windows, axis=1) % 100) == 1).all()  # neighbours in the file, around its end
    starts = [set(w[:, 0]) for w in epochs]
    assert starts[0] != starts[1] != starts[2]
    assert not np.array_equal(epochs[0], train_windows(tokens, length, 1, range(n)))


def test_windows_belong_to_the_sample_and_not_to_its_batch():
    tokens = np.arange(1000, dtype=np.uint16)
    both = train_windows(tokens, 16, 0, [3, 200])
    assert np.array_equal(both[1:], train_windows(tokens, 16, 0, [200]))


def test_framed_windows_are_text_between_two_eos_and_still_show_every_token_once():
    tokens = np.arange(100, dtype=np.uint16)
    windows = train_windows(tokens, 10, 0, range(12), eos=777)  # 12 windows of 8 tokens
    assert windows.shape == (12, 10) and (windows[:, [0, -1]] == 777).all()
    assert len(np.unique(windows[:, 1:-1])) == 96 and ((np.diff(windows[:, 1:-1], axis=1) % 100) == 1).all()
    assert val_windows(tokens, 10, 2, eos=777).tolist() == [[777, *range(8), 777], [777, *range(8, 16), 777]]
    assert val_windows(tokens, 10, 99, eos=0)[0, 0] == 0


def test_validation_windows_are_the_first_in_order():
    assert val_windows(np.arange(100, dtype=np.uint16), 8, 3).tolist() == [list(range(8 * i, 8 * i + 8)) for i in range(3)]
    assert len(val_windows(np.arange(100, dtype=np.uint16), 8, 999)) == 12
    with pytest.raises(Problem, match="fewer than one window"):
        val_windows(np.arange(5, dtype=np.uint16), 8, 1)


def test_words_are_known_that_occur_in_either_split(tmp_path):
    """Texts of 2 and 4 words, 2 known in each: 4 of 6, and errors of 2/9 from two residuals of 2 - 4/3 and 2 - 8/3, over 3 words in the
    mean. Windows of 6 letters cut the real text into `blue b`, `lue bl` and `ue blu`: 1 of 6."""
    (tmp_path / "x").mkdir()
    for split, text in (("train", "red " * 9), ("val", "blue " * 4)):
        np.frombuffer(text.encode(), np.uint8).astype(np.uint16).tofile(tmp_path / "x" / f"{split}.bin")
    (tmp_path / "x" / "meta.json").write_text(json.dumps(BYTES | {"train": {"tokens": 36}, "val": {"tokens": 20}}))
    found = word_report(["red blue", " red\ngreen blue redblue"], "x", 6, tmp_path)
    assert found == {"known_words": pytest.approx(4 / 6), "stderr": pytest.approx(2 / 9), "known_words_of_real_text": pytest.approx(1 / 6),
                     "num_samples": 2, "corpus": "x"}
    assert word_report(["red blue"], "x", 5, tmp_path)["known_words_of_real_text"] == 1  # windows that cut no word
    assert math.isnan(word_report(["red"], "x", 6, tmp_path)["stderr"]) and word_report(["", ""], "x", 6, tmp_path)["known_words"] == 0


def test_a_damaged_dataset_is_named(tmp_path):
    with pytest.raises(Problem, match="prepare_owt.py"):
        load_tokens("x", "train", tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "meta.json").write_text(json.dumps(BYTES | {"train": {"tokens": 10}}))
    with pytest.raises(Problem, match="missing or not 10 tokens long"):
        load_tokens("x", "train", tmp_path)
    np.arange(9, dtype=np.uint16).tofile(tmp_path / "x" / "train.bin")
    with pytest.raises(Problem, match="missing or not 10 tokens long"):
        load_tokens("x", "train", tmp_path)
    for val in ({}, {"val": None}, {"val": 3}, {"val": {"tokens": 0}}):
        (tmp_path / "x" / "meta.json").write_text(json.dumps(BYTES | {"train": {"tokens": 10}} | val))
        with pytest.raises(Problem, match="says nothing of a val split"):
            load_tokens("x", "val", tmp_path)
    np.arange(248, 258, dtype=np.uint16).tofile(tmp_path / "x" / "train.bin")
    with pytest.raises(Problem, match="holds ids beyond the 257 that meta.json names"):
        load_tokens("x", "train", tmp_path)
    for damaged in ("{", "[]", json.dumps({"train": {"tokens": 10}}), json.dumps(BYTES | {"vocab_size": "257"})):
        (tmp_path / "x" / "meta.json").write_text(damaged)
        with pytest.raises(Problem, match="damaged"):
            load_tokens("x", "train", tmp_path)


def test_a_file_that_is_named_twice_is_read_once(tmp_path):
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "c.txt").symlink_to("a.txt")
    assert prepare_owt.find([f"{tmp_path}/b.txt", str(tmp_path)], (".txt",)) == [f"{tmp_path}/b.txt", f"{tmp_path}/a.txt"]
