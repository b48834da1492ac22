import json
import os
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported: the tests, and what they start, are of the CPU on every machine

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from claim_toy import claim_once, claimed, toy  # noqa: F401, fixtures
from train_config import parse_args

torch.set_num_threads(1)  # make test runs two processes, and in a network of a few channels threads mostly wait for each other


@pytest.fixture(autouse=True)
def each_test_starts_with_denormal_numbers():
    """train.main flushes them for the rest of its process, which here goes on with other tests."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def cfg(tmp_path):
    """A run of 12 tiny steps on 4,000 random bytes in which every byte repeats once, so there is something to learn."""
    folder = tmp_path / "data" / "toy"
    folder.mkdir(parents=True)
    ids = np.repeat(np.random.default_rng(0).integers(97, 101, 2000), 2).astype(np.uint16)
    meta = {"tokenizer": "bytes", "vocab_size": 257, "eos": 256}
    for split in ("train", "val"):
        ids.tofile(folder / f"{split}.bin")
        meta[split] = {"tokens": 4000, "bytes": 4000}
    (folder / "meta.json").write_text(json.dumps(meta))
    flags = "--preset demo --dataset toy --length 16 --n_layer 1 --n_head 2 --d_model 16 --d_embed 4 --batch_size 4"
    more = "--max_steps 12 --warmup 2 --log_every 1 --save_every 5 --eval_windows 32 --device cpu "
    more += f"--data_dir {tmp_path}/data --out_dir {tmp_path}/out"
    return parse_args((flags + " " + more).split())
