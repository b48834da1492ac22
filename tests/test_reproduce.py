"""reproduce.py: its plan, and the whole of it on a toy."""

import json
import math
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from claim_toy import SAMPLE_ALL, TRAININGS
from train_config import parse_args as train_args

import reproduce
import reproduce_config
from config import Problem
from dsl_loss import SNRMix, draw_corruption, is_endpoint
from reproduce_config import SCALES, Curve, cells, flags, parse_args, sampling, tasks_of, trainings
from sampler_config import parse_args as sampler_args
from validate import SNR_BINS, ce_by_snr, own_loss

# ---- the plan ----------------------------------------------------------------------------------------------------------------


def test_all_ways_of_going_on_get_the_same_training():
    cfg = parse_args([])
    plan = trainings(cfg, {"mdlm_more": "1e-3", "masked": "4e-3", "dsl": "2e-3"}, cfg.training_seeds)
    for seed in SCALES["cpu"].seeds:
        ours, theirs, control = (vars(train_args(plan[f"{model}-{seed}"])) for model in ("dsl", "mdlm_more", "masked"))
        assert {name for name in ours if ours[name] != theirs[name]} == {"objective", "lr", "d_embed", "out_dir"}
        assert {name for name in ours if ours[name] != control[name]} == {"endpoint", "lr", "d_embed", "out_dir"}
    for argv in plan.values():
        assert train_args(argv).dataset == "pydocs"
    assert len({argv[argv.index("--out_dir") + 1] for argv in plan.values()}) == len(plan)


def test_each_seed_goes_on_from_an_mdlm_of_its_own_where_that_is_asked_for():
    cfg = parse_args("--mdlm_per_seed --seeds 0 3 --out_dir out/own".split())
    plan = trainings(cfg, dict.fromkeys(reproduce_config.WAYS, "1e-3"), cfg.training_seeds)
    assert list(plan)[:4] == ["mdlm-0", "mdlm-3", "judge", "ar"] and len(plan) == 4 + 2 * 3 and list(trainings(cfg))[0] == "mdlm-9"
    first, other = (vars(train_args(plan[f"mdlm-{seed}"])) for seed in (0, 3))
    alone = vars(train_args(trainings(parse_args([]))["mdlm"]))
    assert {name for name in first if first[name] != other[name]} == {"seed", "out_dir"}
    assert {name for name in first if first[name] != alone[name]} == {"out_dir"}  # seed 0 is the claim's own MDLM
    for name, argv in plan.items():
        seed = name.split("-")[-1]
        assert name in ("judge", "ar") or train_args(argv).seed == int(seed) + 100 * ("--init_from" in argv)
        assert ("--init_from" in argv) == (f"out/own/mdlm-{seed}/ckpt.pt" in argv) == name.startswith(("dsl", "masked", "mdlm_more"))
    folders = [sampler_args(sampling(cfg, Curve(model, "remdm", []), seed, 8, 1.0, {}, 2)).ckpt
               for model in ("mdlm", "dsl", "ar") for seed in (0, 3)]
    assert folders == [f"out/own/{name}/ckpt.pt" for name in ("mdlm-0", "mdlm-3", "dsl-0", "dsl-3", "ar", "ar")]


@pytest.mark.parametrize("flags", ["", "--endpoint 0.25 --snr_median 2 --snr_sigma 0.5", "--endpoint 1"])
def test_own_loss_weighs_every_snr_as_training_draws_it(flags):
    """64,000 tokens whose loss depends on the bin of their SNR, between 0 and 2.3: their mean is known to .003, and .015 is 5 of that."""
    cfg = train_args(["--preset", "demo", "--length", "16", *flags.split()])
    mix, samples = SNRMix(cfg.endpoint, cfg.common, cfg.snr_median, cfg.snr_sigma), list(range(4000))
    samples.sort(key=lambda s: not is_endpoint(s, cfg.endpoint))
    snr, _ = draw_corruption(0, samples, cfg.length, 2, 11.0, mix)
    ce = torch.where(snr.isinf(), 0.1, 2.3 - 0.4 * torch.bucketize(snr / 11.0, torch.tensor(SNR_BINS[:-1])))
    scores = {"by_snr": ce_by_snr(ce, snr, 11.0), "roar": (9.0, 0.1)}
    assert own_loss(scores, cfg) == pytest.approx(ce.mean().item(), abs=0.015)
    assert own_loss({"by_snr": {name: (1.0, 0.0) for name in ("masked", "clean")}, "roar": (9.0, 0.1)}, cfg) == pytest.approx(cfg.endpoint)
    some = {name: (1.0, 0.0) for name in ce_by_snr(ce, snr, 11.0) if name != "2-4"}  # of which no token was seen
    assert own_loss({"by_snr": some}, cfg) == pytest.approx(1)
    assert own_loss(scores, replace(cfg, objective="mdlm")) == 9.0


@pytest.mark.parametrize("flags", ["--calls 4 8", "--seeds 0", "--seeds 0 0", "--seeds 0 6", "--texts 11", "--texts 1021"])
def test_what_decides_nothing_is_refused(flags, capsys):
    """Nothing has four times the calls of another; one seed has no error; there is no seed 6; six seeds at two temperatures; 1,020 real."""
    with pytest.raises(SystemExit):
        parse_args(flags.split())
    assert flags.split()[0] in capsys.readouterr().err and parse_args(["--seeds", "5", "0"]).training_seeds == (0, 5)


def test_remasks_per_token_become_each_path_s_own_flag():
    assert flags(Curve("dsl", "posterior", []), {"R": 4, "top_p": 1.0}, 32) == {"top_p": 1.0, "remask_budget": 4}
    assert flags(Curve("dsl", "remdm-cap", []), {"R": 4}, 32) == {"eta": 0.125}
    assert [flags(Curve("dsl", "remdm-loop", []), {"R": 4}, T) for T in (32, 4)] == [{"eta": 0.25}, {"eta": 1.0}]


@pytest.mark.parametrize("asked, texts", [("", 768), ("--seeds 0 2 5", 384), ("--seeds 0 2 5 --texts 1020", 1020)])
def test_every_cell_is_a_command_line_of_the_sampler(asked, texts):
    tuning = {c.name: [{"T": T, "setting": c.grid[-1], "nll": 2.0, "temperature": t} for T, t in ((8, 0.8), (32, 1.0), (128, 1.1))]
              for c in reproduce_config.CURVES}
    plan, seeds = cells(cfg := parse_args(asked.split()), tuning, 128), len(cfg.training_seeds)
    outs = [argv[-1] for argvs in plan.values() for argv in argvs]
    assert len(outs) == len(set(outs)) and len(plan) == 7 * (len(reproduce_config.CURVES) - 1) + 1
    for (name, T), argvs in plan.items():
        settings = [sampler_args(argv) for argv in argvs]
        assert len(settings) == 2 * seeds and {s.steps for s in settings} == {T} and {s.path for s in settings} == {name.split("/")[1]}
        assert len({s.seed for s in settings}) == seeds and len({s.temperature for s in settings}) == 2
        assert sum(s.num_samples for s in settings) == (texts if T <= 128 else 24 * seeds)
    assert sum(map(len, tasks_of({(*key, 0): argvs for key, argvs in plan.items()}))) == len(outs)


def test_settings_of_the_nearest_tuning_with_temperatures_between():
    def tried(T, R, nll, temperature):
        return {"T": T, "setting": {"R": R}, "nll": nll, "temperature": temperature}

    entries = [tried(32, 2, 2.0, 0.8), tried(32, 4, 2.1, 0.9), tried(32, 8, 2.9, 2.0), tried(8, 2, 3.0, 1.0), tried(8, 4, None, 1.0),
               tried(128, 2, 1.9, 0.6), tried(128, 4, 1.7, 1.3)]
    assert [reproduce_config.settings_at(entries, T)[0]["R"] for T in (4, 8, 16, 32, 64, 128, 256)] == [2, 2, 2, 2, 4, 4, 4]
    assert [reproduce_config.settings_at(entries, T)[1] for T in (4, 16, 32, 64, 256)] == pytest.approx([1.0, 0.9, 0.8, 1.1, 1.3])
    assert reproduce_config.best_path({"dsl/a": entries, "dsl/b": [tried(8, 1, 3.0, 1.0), tried(32, 1, 1.9, 1.0)],
                                       "mdlm/a": [tried(8, 1, 0.0, 1.0), tried(32, 1, 0.0, 1.0)]}, "dsl") == "dsl/b"


def test_a_setting_at_the_edge_of_the_grid_is_followed_beyond_it():
    edge = {"R": reproduce_config.AT, "top_p": 1.0}
    assert reproduce_config.beyond(edge, 64) == [edge, {"R": 1024, "top_p": 1.0}] and reproduce_config.beyond(edge, 8) == [edge]
    assert all(len(reproduce_config.beyond(setting, 64)) == 1 for setting in ({"R": 16}, {"top_p": 0.9}))
    assert max(s["R"] for s in reproduce_config.REMASK) == reproduce_config.AT and 1024 >= max(reproduce_config.SCALES["gpu"].steps)


def test_a_cell_far_from_the_data_s_entropy_is_drawn_again_until_it_is_near(monkeypatch):
    def entropy_is_temperature(cfg, plan, judge):
        temperatures = {key: np.array([sampler_args(argv).temperature for argv in argvs]) for key, argvs in plan.items()}
        return {key: {"entropy": each.reshape(6, 2, 1)} for key, each in temperatures.items()}

    monkeypatch.setattr(reproduce, "sample_all", lambda cfg, tasks, what: None)
    monkeypatch.setattr(reproduce, "arrays", entropy_is_temperature)
    tuning = {curve.name: [{"T": 32, "setting": {}, "nll": 3.0, "temperature": 1.0}] for curve in reproduce_config.CURVES}
    for target, near in ((1.0, True), (1.4, True), (2.0, False)):  # one step of the line ends at 1.2, two at 1.43
        found, better = reproduce.draw(parse_args([]), tuning, SimpleNamespace(context=128), target, only=("dsl/remdm", 4))
        assert found.keys() == {("dsl/remdm", 4)} and bool(better) == (target != 1.0)
        assert (-0.25 <= reproduce.place(found["dsl/remdm", 4]["entropy"], target) <= 1.25) == near


# ---- the whole ---------------------------------------------------------------------------------------------------------------


def assert_far_texts_were_drawn_again(found, folder):
    tries = {}
    for name, tried in found["tuning"].items():
        for e in tried:  # texts that were not on both sides of the data's entropy were drawn again, twice at most
            what = "-".join(f"{key}{value:g}" for key, value in e["setting"].items())
            files = list((folder / name).glob(f"{e['T']}-*-{what}.jsonl"))
            tries.setdefault(len(files) // 2, []).append(e["entropy"][0] <= found["data"]["entropy"][0] <= e["entropy"][1])
    assert tries.keys() == {1, 2, 3} and all(tries[1]) and all(tries[2])


def test_reproduce_leaves_every_number_and_goes_on_where_it_was(claimed, claim_once, tmp_path, capsys):
    (cfg, ran), (_, before, published) = claimed, claim_once
    found = json.loads((tmp_path / "results" / "claim.json").read_text())
    assert len(before) == TRAININGS == 3 + 3 * 2 + 3 * 3 and {"mdlm_more/remdm/4", "dsl/posterior/16", "ar/ar/16"} <= found["cells"].keys()
    assert_far_texts_were_drawn_again(found, tmp_path / "out" / "reproduce" / "samples_tuning")
    tried = [(e["T"], e["setting"]["R"], e["setting"].get("gamma")) for e in found["tuning"]["dsl/posterior"]]
    assert [t for t in tried if t[0] == 32][:2] == [(32, 2, None), (32, 4, None)] and len(tried) == len(set(tried)) == 4 + 3 * 2
    assert all({t[2] for t in tried if t[0] == T} == {None, 1.0, 8.0} for T in (8, 16, 32))
    assert {e["setting"].get("gamma") for e in found["tuning"]["dsl/remdm"]} == {None}
    assert {(e["T"], e["setting"]["draft"]) for e in found["tuning"]["dsl/mend"]} == {(T, d) for T in (8, 16, 32) for d in (0.2, 0.4, 0.6)}
    cell = found["cells"][found["duels"][0]["ours"]]  # at T = 4, where the claim is decided, by more texts
    assert all(duel["num_samples"] == [36, 36] for duel in found["duels"]) and cell["nfe"] <= 4
    assert [found["cells"][f"dsl/remdm/{T}"]["num_samples"] for T in (4, 8, 16)] == [24, 24, 24] and cell["num_samples"] == 36
    assert cell["text_stderr"] > 0 and len(cell["nll_by_seed"]) == 3 and 0 <= cell["mauve"][0] <= 1 and 0 < cell["distinct_4"] <= 1
    assert 0 <= cell["js_1"][0] < cell["js_2"][0] < cell["js_3"][0] < cell["js_4"][0] <= math.log(2)  # as for any two samples of a language
    assert cell["entropy"][0] < math.log(16) and found["duels"] and (tmp_path / "results" / "claim.png").stat().st_size > 1000
    made = set("claim.json claim_training.json claim_tuning.json claim.png claim_logs".split())
    assert [made, TRAININGS] == [set(os.listdir("results")), len(os.listdir("results/claim_logs"))]
    (control,) = found["controls"].values()
    assert set(control["same_rule"]) == {"remdm"} and control["published_against_published"]["at"].keys() == {"4"}
    reproduce.main(cfg)  # nothing is left to do: the same numbers
    again = json.loads((tmp_path / "results" / "claim.json").read_text())
    assert not ran and again["cells"] == found["cells"] and again["duels"] == found["duels"]
    assert capsys.readouterr().out.count("== training") == 0 < published.count("== training") == TRAININGS

    reproduce.main(parse_args("--data toy --calls 16 4 --paths remdm --seeds 2 0 --results results/fewer".split()))
    fewer = json.loads((tmp_path / "results" / "fewer.json").read_text())
    assert {"dsl/remdm/4", "masked/remdm/16", "ar/ar/16"} < fewer["cells"].keys() and not ran
    assert not {key for key in fewer["cells"] if key.endswith("/8") or "posterior" in key} and fewer["best_path"] == "dsl/remdm"
    assert [fewer["cells"][key]["nll_by_seed"] for key in ("dsl/remdm/16", "masked/remdm/16")] == [
        found["cells"][key]["nll_by_seed"][::2] for key in ("dsl/remdm/16", "masked/remdm/16")]  # of the same texts

    reproduce_config.CURVES.append(Curve("dsl", "confidence", [{"top_p": 1.0}]))  # a curve that is younger than the json
    reproduce.main(parse_args(["--data", "toy", "--cell", "dsl/posterior/8"]))
    assert "dsl/posterior/8: NLL at the data's entropy" in capsys.readouterr().out and not ran
    with pytest.raises(Problem, match="has no cell dsl/posterior/5"):
        reproduce.main(parse_args(["--data", "toy", "--cell", "dsl/posterior/5"]))
    os.symlink("toy", tmp_path / "data" / "pydocs")
    with pytest.raises(Problem, match="is of --data toy --scale cpu"):
        reproduce.main(parse_args(["--cell", "dsl/posterior/8"]))


def test_a_tuning_that_is_none_or_of_another_scale_is_refused(toy, tmp_path):
    _, ran = toy
    earlier, flags = tmp_path / "earlier.json", ["--data", "toy", "--workers", "1", "--tuning", str(tmp_path / "earlier.json")]
    for text in ("", "{", "{}", "[]", json.dumps({"learning_rates": {}, "paths": {}, "judge": ""})):
        earlier.write_text(text)
        with pytest.raises(Problem, match="holds no tuning"):
            reproduce.main(parse_args(flags))
    earlier.write_text(json.dumps({"learning_rates": {"mdlm_more": "4e-3", "masked": "1e-3", "dsl": "4e-3"}, "paths": {}, "judge": ""}))
    with pytest.raises(Problem, match="--scale gpu does not train all"):
        reproduce.main(parse_args([*flags, "--scale", "gpu"]))
    assert not ran and not (tmp_path / "results").exists()
    with pytest.raises(SystemExit):
        parse_args(["--tuning", "results/claim_tuning.json"])  # claim.json would be overwritten


def test_what_an_earlier_run_tried_is_not_tried_again(claimed, tmp_path):
    (_, ran), earlier = claimed, tmp_path / "earlier.json"
    flags = [*"--data toy --workers 1 --calls 4 16 --paths remdm posterior --tuning".split(), str(earlier)]

    def tried():
        return set((tmp_path / "out" / "reproduce" / "samples_tuning").rglob("*.jsonl"))

    found, before = json.loads((tmp_path / "results" / "claim_tuning.json").read_text()), tried()
    for ckpt in (tmp_path / "out" / "reproduce").glob("*-lr*/ckpt.pt"):
        shutil.rmtree(ckpt.parent)  # of the thrown-away seed: asked for only where something is to be tuned
    earlier.write_text(json.dumps({**found, "judge": "of another machine"}))
    reproduce.main(parse_args([*flags, "--results", "results/again"]))
    again = json.loads((tmp_path / "results" / "again_tuning.json").read_text())
    assert again == {**again, "paths": found["paths"], "judge": "of another machine"} and tried() == before and not ran
    grid = reproduce_config.CURVES[-1].grid
    grid.append({"R": 8, "top_p": 1.0})
    with pytest.raises(Problem, match="lacks settings, dsl/posterior with .*'R': 8.* another judge"):
        reproduce.main(parse_args(flags))
    earlier.write_text(json.dumps(found))
    reproduce.main(parse_args([*flags, "--results", "results/more"]))
    more = json.loads((tmp_path / "results" / "more_tuning.json").read_text())["paths"]
    assert tried() > before and all("R8" in path.name and "posterior" in path.parts for path in tried() - before)
    assert [e for e in more["dsl/posterior"] if e["setting"]["R"] != 8] == found["paths"]["dsl/posterior"]
    assert {**more, "dsl/posterior": 0} == {**found["paths"], "dsl/posterior": 0} and len(ran) == 1


def test_the_whole_with_an_mdlm_for_each_seed(toy, tmp_path):
    """Its six trainings of the grid go on from the thrown-away seed's MDLM; a cell drawn anew asks for those of its own model alone."""
    _, ran = toy
    reproduce_config.CURVES.append(Curve("mdlm", "remdm", [{}], {"top_p": 0.9}))
    flags = "--data toy --workers 1 --out_dir out/own --results results/own".split()
    reproduce.main(parse_args([*flags, "--mdlm_per_seed", "--seeds", "0", "2", "--calls", "4", "16", "--paths", "remdm"]))
    started = [(args.out_dir.split("/")[-1], args.init_from.split("/")[-2:][0]) for args in (train_args(command[2:]) for command in ran)]
    assert len(ran) == 3 + 3 * 2 + 2 + 2 * 3 and {start for name, start in started if "-lr" in name} == {"mdlm-9"}
    assert {start for name, start in started if name.endswith("-2") and name != "mdlm-2"} == {"mdlm-2"}
    assert len(json.loads((tmp_path / "results" / "own.json").read_text())["against_best"]["at"]["4"]["by_seed"]) == 2
    for name in ("mdlm-2", "dsl-0"):
        shutil.rmtree(tmp_path / "out" / "own" / name)
    reproduce.main(parse_args([*flags, "--cell", "ar/ar/16"]))
    assert len(ran) == 17
    reproduce.main(parse_args([*flags, "--cell", "mdlm/remdm/16"]))
    with pytest.raises(Problem, match="say --out_dir out/own"):
        reproduce.main(parse_args([*flags, "--cell", "mdlm/remdm/16", "--out_dir", "out/other"]))
    assert len(ran) == 17 + 1 and "mdlm-2" in ran[-1][ran[-1].index("--out_dir") + 1]


def test_a_training_that_fails_stops_everything_with_one_sentence(toy, tmp_path):
    cfg, ran = toy
    (tmp_path / "data" / "toy" / "train.bin").write_bytes(b"xx")
    with pytest.raises(Problem, match="training of mdlm stopped"):
        reproduce.main(cfg)
    assert len(ran) == 1 and not (tmp_path / "results").exists()
    assert "train.bin" in (tmp_path / "out" / "reproduce" / "mdlm.log").read_text()


def test_a_finished_training_of_another_text_is_not_taken_for_this_one(toy, tmp_path):
    cfg, ran = toy
    plan = {name: trainings(cfg)[name] for name in ("mdlm", "dsl-lr1e-3")}
    reproduce.train_all(cfg, plan)
    reproduce.train_all(cfg, plan)
    assert len(ran) == 2
    path = tmp_path / "data" / "toy" / "meta.json"
    path.write_text(path.read_text().replace("this text", "that one"))
    with pytest.raises(Problem, match="training of mdlm stopped"):
        reproduce.train_all(cfg, plan)
    assert "another text" in (tmp_path / "out" / "reproduce" / "mdlm.log").read_text()


def test_a_finished_fine_tuning_of_another_start_is_not_taken_for_this_one(toy, tmp_path):
    cfg, ran = toy
    plan, out = {name: trainings(cfg)[name] for name in ("mdlm", "dsl-lr1e-3")}, tmp_path / "out" / "reproduce"
    reproduce.train_all(cfg, plan)
    (out / "dsl-lr1e-3.start").write_text("the sum of another file")
    with pytest.raises(Problem, match="dsl-lr1e-3/ckpt.pt started from another .*mdlm/ckpt.pt than is there now: choose .* delete"):
        reproduce.train_all(cfg, plan)
    shutil.rmtree(out / "dsl-lr1e-3")
    reproduce.train_all(cfg, plan)
    reproduce.train_all(cfg, plan)
    assert len(ran) == 3


def test_as_many_trainings_at_once_as_there_are_workers(toy, monkeypatch):
    """The two wait for each other, so one after the other would stop after 20 seconds."""
    cfg, _ = toy
    run, both, ends = reproduce.subprocess.run, threading.Barrier(2), threading.Lock()

    def together(command, env, **rest):
        both.wait(20)
        assert env["OMP_NUM_THREADS"] == str(max(1, os.cpu_count() // 2))
        with ends:
            run(command, **rest)

    monkeypatch.setattr(reproduce.subprocess, "run", together)
    plan = {name: argv for name, argv in trainings(cfg).items() if name in ("mdlm", "ar")}
    found = reproduce.train_all(parse_args(["--data", "toy", "--workers", "2"]), plan)
    assert [found[name]["step"] for name in ("mdlm", "ar")] == [4, 4]


def test_workers_write_what_one_process_writes(toy, tmp_path, monkeypatch):
    cfg, _ = toy
    reproduce.train_all(cfg, {name: argv for name, argv in trainings(cfg).items() if name in ("mdlm", "judge", "dsl-lr1e-3")})
    tasks = [[sampling(cfg, Curve("dsl", path, []), "lr1e-3", 4, 1.0, {}, 3)] for path in ("posterior", "mdlm")]
    SAMPLE_ALL(parse_args(["--data", "toy", "--workers", "2"]), tasks, "sampling")
    files = [Path(task[0][-1]) for task in tasks]
    written = [path.read_bytes() for path in files]
    for task, path in zip(tasks, files):
        path.unlink()
        reproduce.work(cfg, task, 1)
    assert [path.read_bytes() for path in files] == written and all(text.count(b"\n") == 3 for text in written)
    again = sampling(cfg, Curve("dsl", "mdlm", []), "lr1e-3", 4, 1.0, {}, 3, "_x")
    reproduce.work(cfg, [again], 1)
    assert Path(again[-1]).read_bytes() != written[1]  # --cell draws with another seed
    monkeypatch.setattr("judge.judge_chunk", None)  # all that follows has been judged
    c = reproduce.measure(cfg, [task[0] for task in tasks], reproduce.load_judge("out/reproduce/judge/ckpt.pt", torch.device("cpu")))
    assert len(c["texts"]) == 6 and c["nll"].shape == (6,)


def die(cfg, argvs, threads):
    os._exit(1)


def test_a_sampling_process_that_dies_is_one_sentence(monkeypatch):
    monkeypatch.setattr(reproduce, "work", die)  # as the kernel kills one where memory is short
    with pytest.raises(Problem, match="a sampling process died, .* run the same command again, with fewer --workers"):
        reproduce.sample_all(parse_args(["--workers", "2"]), [[["--steps", "4"]]] * 2, "sampling")


def test_a_cell_that_misses_the_entropy_is_drawn_anew(toy):
    """At temperature 3 all is more varied than the data; the second draw is nearer, and the texts that are kept are its own."""
    cfg, _ = toy
    reproduce.train_all(cfg, trainings(cfg, dict.fromkeys(reproduce_config.WAYS, "1e-3"), cfg.training_seeds))
    judge, *_, (target, _) = reproduce.prepare(cfg)
    entry = {"setting": {}, "nll": 2.0}
    tuning = {c.name: [{"T": 8, "temperature": 3.0, **entry}] for c in cfg.curves}
    found, better = reproduce.draw(cfg, tuning, judge, target, only=("dsl/remdm", 8))
    assert list(found) == list(better) == [("dsl/remdm", 8)] and better["dsl/remdm", 8] < 3 * 0.94
    first, second = (reproduce.arrays(cfg, {0: cells(cfg, tuning, 16, better=known)["dsl/remdm", 8]}, judge)[0] for known in ({}, better))
    assert target < second["entropy"].mean() < first["entropy"].mean() and (found["dsl/remdm", 8]["nll"] == second["nll"]).all()
