"""All of the claim in seconds, for the tests of reproduce.py and ablate.py."""

import contextlib
import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import train
from train_config import parse_args as train_args

import reproduce
import reproduce_config
from config import Problem
from reproduce_config import Curve, Scale, parse_args

SAMPLE_ALL = reproduce.sample_all  # `stage` replaces it
TRAININGS = 18
MENDING = Curve("dsl", "mend", [{"draft": share, "top_p": 1.0} for share in (0.2, 0.4, 0.6)])


def stage(tmp_path, monkeypatch):
    """In a folder, and until the patches are undone, a scale of seconds: networks of 8 channels, four curves, trainings and samplers in
    this process -> the Config, and a list that each training's command is added to."""
    data = np.random.default_rng(0).integers(97, 105, size=4000).astype(np.uint16)
    meta = {"name": "toy", "tokenizer": "bytes", "vocab_size": 257, "eos": 256}
    (tmp_path / "data" / "toy").mkdir(parents=True)
    for split in ("train", "val"):
        data.tofile(tmp_path / "data" / "toy" / f"{split}.bin")
        meta[split] = {"tokens": len(data), "bytes": len(data), "documents": 1, "sha256": "this text"}
    (tmp_path / "data" / "toy" / "meta.json").write_text(json.dumps(meta))
    network = "--n_layer 1 --n_head 1 --d_model 8 --length 16 --batch_size 4 --eval_windows 17 --dtype float32 --save_every 2"
    lrs = dict.fromkeys(reproduce_config.WAYS, ("1e-3", "4e-3"))
    scale = Scale(network, "1e-3", "4e-3", 4, 2, 4, lrs, (4, 8, 16), (0, 1, 2), 4, 24, 12, 36)
    monkeypatch.setattr(reproduce_config, "CURVES", [Curve("ar", "ar", [{"top_p": 1.0}]), Curve("mdlm_more", "remdm", [{}], {"top_p": 0.9}),
                                               Curve("masked", "remdm", [{}], {"top_p": 0.9}), Curve("dsl", "remdm", [{}], {"top_p": 0.9}),
                                               Curve("dsl", "posterior", [{"R": R, "top_p": 1.0} for R in (2, 4)])])
    monkeypatch.setitem(reproduce_config.SCALES, "cpu", scale)
    for module in (reproduce, reproduce_config):
        monkeypatch.setattr(module, "FINALS", (8, 16, 64))  # the last beyond all cells: not tried
    monkeypatch.setattr(reproduce, "GAMMAS", [{"gamma": 1.0}, {"gamma": 8.0}])
    monkeypatch.setattr(reproduce_config.shutil, "which", lambda name: None)  # compiling takes longer than all of this
    ran = []

    def run(command, stdout, **rest):
        ran.append(command)
        try:
            train.main(train_args(command[2:]))
        except Problem as error:
            print(error, file=stdout)

    monkeypatch.setattr(reproduce, "subprocess", SimpleNamespace(run=run, STDOUT=None))
    no_signals = contextlib.nullcontext(SimpleNamespace(agreed=lambda: False))  # they want the main thread
    monkeypatch.setattr(train, "StopSignal", lambda: no_signals)
    monkeypatch.setattr(reproduce, "sample_all", lambda cfg, tasks, what: [reproduce.work(cfg, task, 1) for task in tasks])
    monkeypatch.chdir(tmp_path)
    return parse_args(["--data", "toy", "--workers", "1"]), ran


@pytest.fixture
def toy(tmp_path, monkeypatch):
    return stage(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def claim_once(tmp_path_factory):
    """The folder of a whole claim on the toy, `mend` added, its trainings' commands, and what it printed."""
    folder = tmp_path_factory.mktemp("claim")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        cfg, ran = stage(folder, patch)
        reproduce_config.CURVES.insert(0, MENDING)
        reproduce.main(cfg)
    return folder, ran, printed.getvalue()


@pytest.fixture
def claimed(toy, claim_once, tmp_path):
    """As `toy`, in a folder where the whole claim has been run before."""
    shutil.copytree(claim_once[0], tmp_path, dirs_exist_ok=True)
    reproduce_config.CURVES.insert(0, MENDING)
    return toy
