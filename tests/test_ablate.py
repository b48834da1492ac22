"""ablate.py: its variants, and the whole of it on a toy."""

import itertools
import json
import math
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from train_config import parse_args as train_args

import ablate
import reproduce
from config import Problem
from sampler_config import parse_args as sampler_args


def test_every_variant_is_a_training_or_another_sampling():
    cfg, published = ablate.parse_args([]), {"learning_rates": {"mdlm_more": "2e-3", "masked": "4e-3", "dsl": "8e-3"}}
    asked = {v.name: train_args(ablate.plan_of(cfg, v, published)) for v in ablate.VARIANTS if v.flags}
    seeds = {v.name: train_args(ablate.plan_of(cfg, v, published, 2)).seed for v in ablate.VARIANTS if v.flags}
    assert {name for name, seed in seeds.items() if seed != 2} == {v for v in seeds if "each" in v} and seeds["long_each"] == 102
    own = {"steps500": 500, "steps1000": 1000, "steps4000": 4000} | {name: 9600 for name in asked if "scratch" in name}
    own |= {name: 8000 for name in asked if "long" in name} | dict.fromkeys(("wide_mdlm", "wide_mdlm_slow", "narrow_mdlm"), 9600)
    assert {name: a.max_steps for name, a in asked.items()} == {name: own.get(name, 2000) for name in asked}
    assert len({a.out_dir for a in asked.values()}) == len(asked) and asked["D8"].out_dir == "out/reproduce/dsl_D8-0"
    of = {"lr_twice": 0.016, "beta_fixed": 8e-3, "long": 8e-3, "long_masks": 4e-3, "each_D128_slow": 4e-3, "each_D128_fast": 0.016}
    of |= {"mdlm_long": 2e-3, "mdlm_long_fast": 1e-3, "mdlm_lr_half": 1e-3}
    of |= {"mdlm_each_slow": 1e-3, "mdlm_each_fast": 1e-3, "masks_each": 4e-3, "masks_each_slow": 1e-3, "masks_each_fast": 4e-3}
    of |= {"wide_mdlm": 1e-3, "wide_mdlm_slow": 5e-4, "wide": 8e-3, "wide_slow": 4e-3, "wide_masks": 4e-3, "wide_masks_slow": 1e-3}
    assert {name: asked[name].lr for name in of} == of and asked["scratch_masks"].endpoint == asked["long_masks"].endpoint == 1
    rates = {"slow": 2e-3, "slower": 1e-3}
    assert all(asked[name].lr == rates.get(name.split("_")[-1], 4e-3) for name in own if "scratch" in name)
    alone = ablate.plan_all(replace(cfg, seeds=(1, 2)), [v for v in ablate.VARIANTS if v.name == "D8"], published)
    assert list(alone) == ["judge", "mdlm", "dsl-0", "masked-0", "mdlm_more-0", "dsl_D8-1", "dsl_D8-2"]
    by_wide = ablate.plan_all(replace(cfg, claimed=False), [v for v in ablate.VARIANTS if v.name == "wide" or not v.flags], published)
    assert list(by_wide) == ["judge", "mdlm", "dsl-0", "dsl_wide-0"]  # which is what dsl-0 goes on from
    assert {a.objective for name, a in asked.items() if "mdlm" in name} == {"mdlm"} != {asked["scratch"].objective} == {"dsl"}
    for name in ("wide", "narrow"):
        slow = ("_mdlm_more_slow", "_masks_slow", "_slow") if name == "wide" else ()
        start, *others = (asked[name + of] for of in ("_mdlm", "_mdlm_more", "_masks", "", *slow))
        assert start.init_from == "scratch" and {a.init_from for a in others} == {f"{start.out_dir}/ckpt.pt"}
        assert {a.d_model for a in (start, *others)} == {192 if name == "wide" else 64}
    assert all(v.flags or sampler_args(shlex.split(v.sampler)).clean_snr for v in ablate.VARIANTS)


def test_a_variant_of_a_variant_that_is_not_there_says_so(tmp_path):
    cfg, rates = ablate.parse_args(["--out_dir", str(tmp_path)]), dict.fromkeys(("mdlm_more", "masked", "dsl"), "1e-3")
    plan = ablate.plan_of(cfg, next(v for v in ablate.VARIANTS if v.name == "wide"), {"learning_rates": rates})
    with pytest.raises(Problem, match="wide goes on from .*wide_mdlm-0/ckpt.pt, which is not there: train that first"):
        reproduce.train_one(cfg, "wide", plan, 1)


def test_a_model_is_sampled_with_the_settings_of_the_claim_s_model_of_its_kind():
    def tried(R, temperature):
        return [{"T": 32, "setting": {"R": R}, "nll": 3.0, "temperature": temperature}]

    cfg = ablate.parse_args("--paths posterior soft recorded mend-recorded".split())
    tuning = {"mdlm_more/mend-recorded": tried(5, 7.0), "mdlm/recorded": tried(5, 8.0), "dsl/posterior": tried(8, 1.0),
              "masked/posterior": tried(2, 2.0), "dsl/soft": tried(16, 3.0), "dsl/recorded": tried(4, 4.0),
              "masked/recorded": tried(1, 5.0), "mdlm_more/recorded": tried(3, 6.0)}
    asked = [v for v in ablate.VARIANTS if v.name in ("scratch", "scratch_masks", "mdlm_scratch_slow")]
    plan = ablate.all_cells(cfg, asked, {"tuning": tuning})
    heat = {key: np.mean([sampler_args(argv).temperature for argv in argvs]) for key, argvs in plan.items()}
    assert heat["mdlm", "recorded/16"] == pytest.approx(8.0) and heat["mdlm_more", "recorded/16"] == pytest.approx(6.0)  # each its own
    heat = {key: value for key, value in heat.items() if key[0] not in cfg.models}
    assert heat == pytest.approx({
        ("dsl_scratch", "posterior/16"): 1.0, ("dsl_scratch", "soft/16"): 3.0, ("dsl_scratch", "recorded/16"): 4.0,
        ("dsl_scratch_masks", "posterior/16"): 2.0, ("dsl_scratch_masks", "soft/16"): 3.0, ("dsl_scratch_masks", "recorded/16"): 5.0,
        ("mdlm_scratch_slow", "recorded/16"): 6.0, ("mdlm_scratch_slow", "mend-recorded/16"): 7.0})  # what a kind lacks is as DSL's, or not


def test_ratios_of_steps_by_the_same_path_and_by_the_best():
    cfg = ablate.parse_args("--calls 4 8 16 32 --paths remdm posterior".split())
    mine = {f"remdm/{T}": [3.0 - math.log(T), 0.1] for T in cfg.calls} | {f"posterior/{T}": [math.nan, 0.1] for T in cfg.calls}
    theirs = {f"remdm/{T}": [3.0 - math.log(T / 2), 0.1] for T in cfg.calls}  # twice as many steps for the same
    best = theirs | {f"posterior/{T}": [3.0 - math.log(T), 0.1] for T in cfg.calls}  # as many, by another path
    same = pytest.approx([2, 2, 2, math.nan], nan_ok=True)
    assert ablate.ratios(cfg, mine, best)["remdm"] == {"same": same, "best": pytest.approx([1] * 4)}
    found = ablate.ratios(cfg, mine, theirs)
    assert all(found["remdm"][kind] == pytest.approx([2, 2, 2, math.nan], nan_ok=True) for kind in ("same", "best"))
    assert np.isnan(found["posterior"]["best"]).all()
    back = ablate.ratios(cfg, theirs, mine)
    assert list(back) == ["remdm"] and back["remdm"]["best"] == pytest.approx([1, 0.5, 0.5, 0.5])  # of fewer than 4 nothing is known


def test_mdlms_mend_by_lookup_and_the_others_by_evidence(tmp_path, monkeypatch):
    def answer(asked):
        ways = {way: {"at_98": {"fixed": [share, 0.01]}, "auc": [share, 0.01]} for way, share in (("lookup", 0.1), ("evidence", 0.2))}
        models = {ckpt: {"ckpt": ckpt, "objective": "mdlm" if "mdlm" in ckpt else "dsl", "result": {"random": ways}} for ckpt in asked.ckpt}
        Path(f"{asked.out}.json").write_text(json.dumps({"models": models}))

    monkeypatch.setattr(ablate.analyze, "main", answer)
    found = ablate.mending(ablate.parse_args(["--results", f"{tmp_path}/a"]), ["mdlm", "masked-0"])
    assert {name: (row["fixed_at_98"][0], row["auc"][0]) for name, row in found.items()} == {"mdlm": (0.1, 0.1), "masked-0": (0.2, 0.2)}


def test_a_claim_of_several_mdlms_is_for_models_from_scratch_alone(tmp_path):
    asked, rest = ([], ["--no-claimed"], ["--only", "scratch"]), {"learning_rates": {}, "cells": {}, "data": {}}
    for start, flags in itertools.product(({"mdlm_per_seed": True}, {"fine_tune_steps": 8000}), asked):
        (tmp_path / "each.json").write_text(json.dumps({"config": start, "tuning": {}, **rest}))
        with pytest.raises(Problem, match="has an MDLM for each seed"):
            ablate.main(ablate.parse_args(["--claim", f"{tmp_path}/each", *flags]))
    each = {"config": {"mdlm_per_seed": True, "data": "pydocs", "scale": "cpu"}, **rest}
    with pytest.raises(Problem, match="lacks settings for mend"):  # what starts from scratch goes on from none
        (tmp_path / "each.json").write_text(json.dumps(each | {"tuning": {}}))
        ablate.main(ablate.parse_args(["--claim", f"{tmp_path}/each", "--no-claimed", "--only", "scratch", "--paths", "mend"]))
    with pytest.raises(Problem, match="has settings for none of these models by --paths mend-recorded"):
        (tmp_path / "each.json").write_text(json.dumps(each | {"tuning": {"mdlm_more/mend-recorded": []}}))
        ablate.main(ablate.parse_args(["--claim", f"{tmp_path}/each", "--no-claimed", "--only", "scratch", "--paths", "mend-recorded"]))


def test_ablations_ask_every_variant_the_same(claimed, tmp_path, monkeypatch, capsys):
    _, ran = claimed
    monkeypatch.setattr(ablate, "VARIANTS", (ablate.Variant("endpoint1", "--endpoint 1", "why?", "worse"),
                                             ablate.Variant("mdlm_slow", "--objective mdlm --lr 2e-3", "and?", "worse"),
                                             ablate.Variant("clean1", "", "and?", "as before", "--clean_snr 1")))
    monkeypatch.setattr(ablate, "sample_all", reproduce.sample_all)
    analyse = ablate.analyze.main
    monkeypatch.setattr(ablate.analyze, "main", lambda asked: analyse(replace(asked, num_windows=20)))
    for other in ("none", "claim_training"):
        with pytest.raises(Problem, match=f"{other}.json holds no claim .*run reproduce.py first"):
            ablate.main(ablate.parse_args(["--data", "toy", "--claim", f"results/{other}"]))
    with pytest.raises(Problem, match="lacks settings for hybrid: leave them out"):
        ablate.main(ablate.parse_args("--data toy --paths posterior hybrid".split()))
    ablate.main(ablate.parse_args("--data toy --texts 4 --workers 1 --seeds 0 2 --calls 8 16 --paths posterior remdm".split()))
    found = json.loads((tmp_path / "results" / "ablations.json").read_text())
    rows, every = found["variants"], {f"{path}/{T}" for path in ("posterior", "remdm") for T in (8, 16)}
    assert list(rows) == ["dsl", "masked", "mdlm_more", "mdlm", "dsl_endpoint1", "mdlm_slow", "dsl_clean1"]
    assert len(ran) == 4
    asked = {a.out_dir.split("/")[-1]: a for a in (train_args(command[2:]) for command in ran)}
    models = "dsl_endpoint1", "mdlm_slow"
    assert {name: a.seed for name, a in asked.items()} == {f"{model}-{seed}": seed for model in models for seed in (0, 2)}
    assert {a.d_embed for a in asked.values()} == {128}  # as the claim that is varied
    assert asked["dsl_endpoint1-2"].endpoint == 1 and asked["mdlm_slow-2"].lr == 2e-3 and set(rows["dsl_endpoint1"]["nll"]) == every
    assert all(set(rows[of]["nll"]) == {"remdm/8", "remdm/16"} and rows[of]["fixed_at_98"] for of in ("mdlm_more", "mdlm", "mdlm_slow"))
    assert set(rows["masked"]["place"]) == every and set(rows["masked"]["ratios"]) == rows.keys() - {"masked"}
    assert not rows["dsl_clean1"]["trained"] and set(rows["dsl_clean1"]["nll"]) == every  # the claim's model
    two = rows["mdlm_slow"]
    each = [two["trained"][f"mdlm_slow-{seed}"]["roar"][0] for seed in (0, 2)]
    assert two["roar"] == pytest.approx([sum(each) / 2, abs(each[0] - each[1]) / 2])  # mean of two and its standard error
    assert {len(values) for values in two["nll_by_seed"].values()} == {2} and len(rows["mdlm"]["nll_by_seed"]["remdm/8"]) == 1
    shown = [sampler_args(shlex.split(json.loads(path.read_text().splitlines()[0])["settings"])[1:])
             for path in Path("out/reproduce/samples_ablation/dsl_clean1").glob("*/*.jsonl")]
    assert {s.steps for s in shown} == {8, 16} and next(s for s in shown if s.path == "remdm").top_p == 0.9  # what the claim fixes
    assert set(rows["masked"]["nll"]) == every
    assert {(s.clean_snr, s.ckpt) for s in shown} == {(1.0, "out/reproduce/dsl-0/ckpt.pt")}
    assert (tmp_path / "results" / "ablations_correction.png").exists()
    assert "dsl_endpoint1" in capsys.readouterr().out
    ablate.main(ablate.parse_args("--data toy --texts 4 --workers 1 --calls 8 --paths posterior --no-claimed --only clean1".split()))
    only = json.loads((tmp_path / "results" / "ablations_only.json").read_text())["variants"]
    assert list(only) == ["dsl_clean1"] and "ratios" not in only["dsl_clean1"]  # one T is no curve
