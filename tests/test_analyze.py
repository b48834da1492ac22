"""analyze.py: its scores against brute force, its questions against models whose answers are known, its errors and its files.

The odds of a false alarm of a comparison within Z standard errors: see toys.py; of an ECE that is held against chance: see test_scores.py.
"""

import importlib.util
import json
import math
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import train
from toys import Z, ExactDenoiser, chi_square_p

import analyze
import probes
from config import Problem
from data import spread_windows, val_windows
from probes import Run, another_token, bounds, calibration, correction, corrupt, invariance, views

CFG = analyze.parse_args(["correction", "--batch_size", "500"])
BYTES = {"val": {"tokens": 1, "bytes": 1}, "text_length": 2}  # bits per byte are bits per token


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- the exact denoiser ------------------------------------------------------------------------------------------------------


def chance(r):
    """The largest ECE by chance when each window adds two tokens that may go together: their variance at most doubles."""
    return 2**0.5 * r["ece_by_chance"][0] + Z * 2**0.5 * r["ece_by_chance"][1]


def test_invariance_of_the_exact_denoiser(monkeypatch):
    x0 = ExactDenoiser().draw(4000)
    for sharpness in (1, 2):
        toy = ExactDenoiser()
        toy.head = lambda h, s=sharpness: s * h
        found = invariance(CFG, Run("toy", "dsl", toy, {}), x0, BYTES)
        assert list(found) == [0.25, 0.5, 1, 2]
        for r in found.values():
            assert all(abs(mean) < Z * stderr for mean, stderr in r["ce_less_direct"].values())  # also of a wrong network
            assert r["ce"]["direct"][0] == pytest.approx(r["nll"][0], rel=1e-6)
            assert r["windows"] == 4000 and r["tokens"] == 8000
        assert all(r["ece"][0] < chance(r) for r in found.values()) == (sharpness == 1)
    monkeypatch.setattr(probes, "forget", lambda z, t, s, eps: (s / t)[..., None] * z)  # forgets to add noise
    found = invariance(CFG, Run("toy", "dsl", ExactDenoiser(), {}), x0, BYTES)
    assert any(abs(r["ce_less_direct"]["forget"][0]) > Z * r["ce_less_direct"]["forget"][1] for r in found.values())


def test_calibration_of_the_exact_denoiser():
    toy = ExactDenoiser()
    x0 = toy.draw(3000)
    found = calibration(replace(CFG, steps=8), Run("toy", "dsl", toy, {}), x0, BYTES)
    assert found["truth, masked"]["ece"][0] < chance(found["truth, masked"])
    assert found["own, shown"]["confidence"][0] > 0.999 > found["own, shown as evidence"]["confidence"][0]
    masked = found["own, masked"]
    assert set(masked["by_step"]) == {2, 4, 6, 7} and masked["tokens"] + found["own, shown"]["tokens"] == 4 * 3000
    first = masked["by_step"][2]  # a token per window: what it has not written yet, given the other one
    assert first["ece"][0] < first["ece_by_chance"][0] + Z * first["ece_by_chance"][1]
    longer = ExactDenoiser(L=4)
    found = calibration(replace(CFG, steps=8), Run("toy", "dsl", longer, {}), longer.draw(1000), BYTES)
    masked, beside = found["own, masked"], found["own, masked beside evidence"]  # the same tokens, with less trust in their neighbours
    assert beside["tokens"] == masked["tokens"] and beside["confidence"][0] < masked["confidence"][0]
    assert beside["ece"][0] < masked["ece"][0]


def test_bounds_of_the_exact_denoiser_hold_and_touch():
    toy, x0 = ExactDenoiser(), ExactDenoiser().draw(4000)
    truth = toy.entropy.item() / math.log(2) / toy.L
    found = bounds(CFG, Run("toy", "dsl", toy, {}), x0, BYTES)
    assert list(found["diffusion"]) == [1, 2, 4, 8] and found["diffusion"][1][0] > found["diffusion"][8][0] + 0.01  # the same noise
    for mean, stderr in (found["roar"], *found["diffusion"].values()):
        assert mean > truth - Z * stderr
    for mean, stderr in (found["roar"], found["diffusion"][8]):
        assert mean < truth + Z * stderr + 0.01  # 0.01: what G = 8 t_c leaves, and more than it
    wrong = bounds(CFG, Run("toy", "mdlm", ExactDenoiser(wrong=1.0), {}), x0, BYTES)
    assert set(wrong) == {"windows", "roar"} and wrong["roar"][0] > truth + Z * wrong["roar"][1]


# ---- correction by models whose answer is known ------------------------------------------------------------------------------


class Known:
    """At the positions `knows` (L,) sure of token i mod V, which is the truth; elsewhere repeats what it is shown, and at a mask knows
    nothing. What flows through is a distribution over tokens."""

    V = mask_id = 5
    E = torch.eye(5)

    def __init__(self, knows):
        self.knows, self.truth = knows, torch.nn.functional.one_hot(torch.arange(len(knows)) % 5, 5).float()

    def embed_ids(self, x):
        return torch.nn.functional.one_hot(x, 6)[..., :5].float()

    def embed_noisy(self, z):
        return z.softmax(-1)

    def hidden(self, h):
        return torch.where(self.knows[:, None], self.truth, h)

    def head(self, h):
        return 3 * h  # p(truth) = 0.83: its own draws err


X0 = (torch.arange(20) % 5).expand(40, -1)


def draft_of(model, kind, cfg=CFG):
    counts = torch.bincount(X0.flatten(), minlength=5).double()
    return torch.cat([corrupt(cfg, model, kind, X0[part], part.tolist(), counts) for part in torch.arange(40).split(cfg.batch_size)])


def test_who_knows_fixes_all_and_who_repeats_fixes_none():
    every = torch.ones(20, dtype=torch.bool)
    for kind, ways in correction(CFG, Run("knows", "dsl", Known(every), {}), X0, BYTES).items():
        for way, r in ways.items():
            for at in ("argmax", "at_98", "at_99", "refined"):
                assert r[at]["fixed"][0] == r[at]["kept"][0] == 1, (kind, way, at)
            assert r["auc"][0] == 1 and r["at_98"]["tau"] == 0 and r["curve"] == [(0, 1, 1)]
            assert r["calls"] == (8 if way == "sweep" else 1) and r["refined"]["calls"] == 4 * r["calls"]
            assert r["errors"] + r["clean"] == 800 and (kind == "own" or r["errors"] == 80)
    for kind, ways in correction(CFG, Run("repeats", "dsl", Known(~every), {}), X0, BYTES).items():
        for way, r in ways.items():
            assert all(r[at]["fixed"][0] == 0 and r[at]["kept"][0] == 1 for at in ("argmax", "at_98", "at_99", "refined")), (kind, way)
            assert r["auc"][0] == pytest.approx(0.5, abs=0.15)  # ties, or Z standard errors of 80 ranks where they round apart


class Chain(Known):
    """Knows a token if the one before it is shown right, so that every round mends the first of each run of errors."""

    def hidden(self, h):
        right = (h.argmax(-1) == self.truth.argmax(-1)).roll(1, 1).index_fill(1, torch.tensor(0), True)
        return torch.where(right[..., None], self.truth, h)


def test_rounds_go_on_from_the_changed_text():
    cfg, model = replace(CFG, corrupt=0.5, refine=3), Chain(torch.ones(20, dtype=torch.bool))
    found = correction(cfg, Run("chain", "dsl", model, {}), X0, BYTES)["random"]["lookup"]
    left = draft_of(model, "random", cfg) != X0
    assert found["argmax"]["fixed"][0] == pytest.approx(1 - (left[:, 1:] & left[:, :-1]).sum().item() / 400)  # two wrong in a row
    left = left[1::2]  # judged on the odd windows
    for at, rounds in (("at_98", 1), ("refined", 2)):
        for _ in range(rounds):
            left &= left.roll(1, 1).index_fill(1, torch.tensor(0), False)
        assert found[at]["fixed"][0] == pytest.approx(1 - left.sum().item() / 200) and found[at]["kept"][0] == 1


def test_errors_are_other_tokens_by_their_frequency_at_the_same_places_for_all():
    every = torch.ones(20, dtype=torch.bool)
    a, b = draft_of(Known(every), "random"), draft_of(Known(~every), "random", replace(CFG, batch_size=7))
    assert torch.equal(a, b) and ((a != X0).sum(1) == 2).all()
    assert not ((draft_of(Known(~every), "own") != X0) & (a == X0)).any()  # its own errors lie at the same places
    assert not torch.equal(a, draft_of(Known(every), "random", replace(CFG, seed=1)))
    counts = torch.tensor([5.0, 0, 1, 3, 1]).double()
    for truth in (0, 2, 4):
        found = another_token(counts, torch.full((20_000,), truth), torch.rand(20_000, generator=gen(truth), dtype=torch.float64))
        expected = counts.index_fill(0, torch.tensor(truth), 0)
        observed = torch.bincount(found, minlength=5).double()
        assert observed[truth] == 0 and chi_square_p(observed, expected / expected.sum() * 20_000) > 1e-6


@pytest.mark.parametrize("L, sweep", [(20, 8), (5, 8), (16, 4)])
def test_a_sweep_masks_every_position_exactly_once(L, sweep):
    model, x = Known(torch.zeros(L, dtype=torch.bool)), torch.randint(5, (3, L), generator=gen())
    seen = torch.zeros(3, L)
    for h, where in views(replace(CFG, sweep=sweep), model, "sweep", x):
        assert (h.sum(-1) == ~where).all() and torch.equal(h[~where], model.embed_ids(x)[~where]) and where.any()
        seen += where
    assert (seen == 1).all()


# ---- the command line --------------------------------------------------------------------------------------------------------


def ask_for(what, cfg, *flags, runs=("dsl",)):
    ckpts = [f"{cfg.out_dir}/{name}/ckpt.pt" for name in runs]
    analyze.main(analyze.parse_args([what, "--ckpt", *ckpts, "--data_dir", cfg.data_dir, "--num_windows", "250", *flags]))


def trained(cfg, *objectives):
    for objective in objectives:
        train.main(replace(cfg, objective=objective, out_dir=f"{cfg.out_dir}/{objective}"))


def test_every_question_writes_its_json_and_its_figure(cfg, tmp_path, capsys, monkeypatch):
    trained(replace(cfg, eval_windows=250), "dsl", "mdlm", "ar")
    whom = {"correction": ["dsl", "mdlm"], "calibration": ["mdlm", "dsl"], "bounds": ["dsl", "mdlm", "ar"], "invariance": ["dsl"]}
    for what, runs in whom.items():
        ask_for(what, cfg, "--out", f"{tmp_path}/r/{what}", "--steps", "8", runs=runs)
        text, shown = (tmp_path / f"r/{what}.json").read_text(), capsys.readouterr().out
        result = json.loads(text)
        assert {"command", "commit", "config", "data"} <= result.keys() and "NaN" not in text and result["windows"] == 250
        assert list(result["models"]) == [name.upper() for name in runs] and all(m["step"] == 12 for m in result["models"].values())
        assert f"{what} of {runs[0].upper()} (step 12)" in shown and f"saved {tmp_path}/r/{what}.json" in shown
        drawn = importlib.util.find_spec("matplotlib") is not None
        assert (tmp_path / f"r/{what}.png").exists() == drawn and ("left out" in shown) == (not drawn)
    found = {m: row["result"] for m, row in json.loads((tmp_path / "r/calibration.json").read_text())["models"].items()}
    plt = pytest.importorskip("matplotlib.pyplot")
    titles = {axes.get_title() for axes in analyze.calibration_figure(plt, found).axes}
    assert len(found["DSL"]) == 5 and set(found["DSL"]) <= titles  # a panel for each kind of draft
    for what, draw in ("correction", analyze.correction_figure), ("bounds", analyze.bounds_figure):
        asked = json.loads((tmp_path / f"r/{what}.json").read_text())["models"]
        figure = draw(plt, {f"{name} out/{9 * 'long/'}ckpt.pt": row["result"] for name, row in asked.items()})
        figure.canvas.draw()
        assert figure.bbox.x0 <= (box := figure.legends[0].get_window_extent()).x0 < box.x1 <= figure.bbox.x1
    bits = json.loads((tmp_path / "r/bounds.json").read_text())["models"]["AR"]["result"]["nll"]
    validation = torch.load(f"{cfg.out_dir}/ar/ckpt.pt", weights_only=True)["validation"]["nll"]
    assert bits == pytest.approx(validation, rel=0.02)  # the same windows, in training perhaps in bfloat16
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ask_for("invariance", cfg, "--out", f"{tmp_path}/plain.json")
    assert "pip install matplotlib" in capsys.readouterr().out and {p.name for p in tmp_path.glob("plain*")} == {"plain.json"}


def test_training_seeds_of_one_model_are_told_as_one(cfg, tmp_path, capsys):
    for folder, changes in {"x": {"seed": 0}, "z": {"seed": 1}, "y": {"seed": 1, "lr": 1e-3}}.items():
        train.main(replace(cfg, out_dir=f"{cfg.out_dir}/{folder}", **changes))
    shutil.copytree(f"{cfg.out_dir}/x", f"{cfg.out_dir}/x_once_more")  # seed 0 again, which is no third seed
    for what in ("correction", "calibration", "bounds"):
        runs = ["x", "z", "y"] + ["x_once_more"] * (what == "bounds")
        ask_for(what, cfg, "--out", f"{tmp_path}/{what}", "--steps", "8", runs=runs)
        found, shown = json.loads((tmp_path / f"{what}.json").read_text()), capsys.readouterr().out
        ((name, mean),), models = found["over_seeds"].items(), [row["result"] for row in found["models"].values()]
        assert name == f"DSL {cfg.out_dir}/x/ckpt.pt" and f"{cfg.out_dir}/z" not in shown.split("on cpu")[1] and "seeds" in shown
        pick = {"correction": lambda r: r["random"]["evidence"]["auc"], "calibration": lambda r: r["own, masked"]["ece"],
                "bounds": lambda r: r["roar"]}[what]
        (a, _), (b, _), *_ = map(pick, models)
        assert a != b and pick(mean) == pytest.approx([(a + b) / 2, abs(a - b) / 2])  # of two, sd / sqrt(2) is half their distance
        curves = ["curve" in json.dumps(m) or "reliability" in json.dumps(m) for m in models]
        assert what == "bounds" or curves == [True, False, True]


def test_two_steps_of_one_training_are_not_two_seeds(cfg):
    early, late = (replace(cfg, max_steps=steps, out_dir=f"{cfg.out_dir}/{steps}") for steps in (1, 2))
    for each in (early, late):
        train.main(each)
    ckpts = [f"{each.out_dir}/ckpt.pt" for each in (early, late)]
    ckpt = torch.load(ckpts[1], weights_only=True)
    ckpt["config"] = torch.load(ckpts[0], weights_only=True)["config"] | {"seed": 1}  # all alike but seed and step
    torch.save(ckpt, ckpts[1])
    *_, alike = analyze.load(analyze.parse_args(["bounds", "--ckpt", *ckpts, "--data_dir", cfg.data_dir, "--num_windows", "250"]))
    assert [len(seeds) for seeds in alike] == [1, 1]


def test_seeds_that_go_on_from_checkpoints_of_several_seeds_are_told_as_one(cfg):
    trained(cfg, "mdlm")
    for start in ("mdlm-1", "mdlm-2", "better-2"):
        shutil.copytree(f"{cfg.out_dir}/mdlm", f"{cfg.out_dir}/{start}")
    for folder, seed, start in (("a", 1, "mdlm-1"), ("b", 2, "mdlm-2"), ("c", 1, "better-2")):
        train.main(replace(cfg, seed=seed, max_steps=1, out_dir=f"{cfg.out_dir}/{folder}", init_from=f"{cfg.out_dir}/{start}/ckpt.pt"))
    ckpts = [f"{cfg.out_dir}/{folder}/ckpt.pt" for folder in "abc"]
    *_, alike = analyze.load(analyze.parse_args(["bounds", "--ckpt", *ckpts, "--data_dir", cfg.data_dir, "--num_windows", "250"]))
    assert alike == [[f"DSL {ckpts[0]}", f"DSL {ckpts[1]}"], [f"DSL {ckpts[2]}"]]


def test_bits_of_sequences_between_two_eos_are_per_byte_of_their_text(cfg, tmp_path):
    """14 of 16 tokens: in the log exactly, and by `bounds` as in the validation, of nearly the same windows (validation: test_train.py)."""
    trained(replace(cfg, frame_eos=True, eval_windows=250), "ar")
    rows = [json.loads(line) for line in open(f"{cfg.out_dir}/ar/log.jsonl")]
    for row in (row for row in rows if "loss" in row):
        assert row["bits_per_byte"] == pytest.approx(row["loss"] / math.log(2) * 16 / 14)
    ask_for("bounds", cfg, "--out", f"{tmp_path}/bounds", runs=["ar"])
    bits = json.loads((tmp_path / "bounds.json").read_text())["models"]["AR"]["result"]["nll"]
    assert bits[0] == pytest.approx(rows[-1]["validation"]["nll"][0], rel=0.02)


def test_what_does_not_fit_together_is_a_problem(cfg, tmp_path):
    trained(cfg, "dsl", "ar", "mdlm")
    trained(replace(cfg, length=8, out_dir=f"{cfg.out_dir}/short"), "dsl")
    for what in ("correction", "calibration", "invariance"):
        with pytest.raises(Problem, match="was trained by ar"):
            ask_for(what, cfg, runs=["ar"])
    with pytest.raises(Problem, match="makes sense for dsl models"):
        ask_for("invariance", cfg, runs=["mdlm"])
    with pytest.raises(Problem, match="differ in length, 16 and 8"):
        ask_for("bounds", cfg, runs=["dsl", "short/dsl"])
    with pytest.raises(Problem, match="no dataset 'x'"):
        ask_for("bounds", cfg, "--data", "x")
    meta = json.loads((tmp_path / "data/toy/meta.json").read_text())
    for name, changes in (("text8", {"tokenizer": "text8", "vocab_size": 27}), ("few", {"val": {"tokens": 300, "bytes": 300}})):
        (tmp_path / "data" / name).mkdir()
        (tmp_path / "data" / name / "meta.json").write_text(json.dumps(meta | changes))
        (np.arange(300) % 27).astype(np.uint16).tofile(tmp_path / "data" / name / "val.bin")
    with pytest.raises(Problem, match="text8 holds 27 kinds of text8 tokens"):
        ask_for("bounds", cfg, "--data", "text8")
    with pytest.raises(Problem, match="few has 18 validation windows"):
        ask_for("bounds", cfg, "--data", "few")


@pytest.mark.parametrize("eos", [None, 7])
def test_windows_are_spread_over_the_whole_split(eos):
    tokens = np.arange(1000, dtype=np.uint16)
    found = torch.from_numpy(spread_windows(tokens, 10, 20, eos))
    inner = found[:, 1:-1]
    assert found.shape == (20, 10) and (inner.diff(dim=1) == 1).all()
    assert set(inner[:, 0].diff().tolist()) == ({50} if eos is None else {48, 56})  # 100 windows, or 125
    assert (found[:, [0, -1]] == eos).all() if eos else (found[:, 1:].diff(dim=1) == 1).all()
    assert (spread_windows(tokens, 10, 500, eos) == val_windows(tokens, 10, 500, eos)).all()
    assert spread_windows(tokens, 10, 60, eos).max() >= 980  # also where the count does not divide
    with pytest.raises(Problem, match="fewer than one window"):
        spread_windows(tokens[:5], 10, 20, eos)


@pytest.mark.parametrize("flags", ["", "correct", "bounds --num_windows 3", "correction --corrupt 1", "correction --evidence_snr nan",
                                   "correction --sweep 1", "calibration --steps 3", "bounds --ckpt a a",
                                   "bounds --out a/", "correction --refine 0"])
def test_bad_flags_are_usage_errors(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        analyze.parse_args(flags.split())
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
