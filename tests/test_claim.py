"""The arithmetic of the claim, on curves whose answer is known."""

import math

import numpy as np
import pytest
import torch

import claim
from eval_mauve import COLUMNS
from metrics import mauve, ngram_js


def texts(mean, slope=3.0, n=60, noise=0.3, seed=0, entropies=(2.9, 3.0), by_seed=0.0):
    """A cell (3, 2, n) whose NLL at entropy 2.95 is `mean` and falls by `slope` with entropy; training seeds differ by `by_seed`."""
    rng = np.random.default_rng(seed)
    H = np.array(entropies)[None, :, None] + 0.05 * rng.standard_normal((3, 2, n))
    nll = mean + slope * (H - 2.95) + noise * rng.standard_normal((3, 2, n)) + by_seed * np.arange(-1, 2)[:, None, None]
    return {"nll": nll, "entropy": H}


def test_a_cell_is_read_at_the_entropy_of_the_data():
    exact = texts(2.0, noise=0.0)
    assert claim.at_entropy(exact["nll"], exact["entropy"], 2.95) == pytest.approx(2.0, abs=1e-9)
    assert claim.at_entropy(exact["nll"], exact["entropy"], 3.05) == pytest.approx(2.3, abs=1e-9)
    assert math.isnan(claim.at_entropy(exact["nll"], exact["entropy"], 3.5))  # too far to follow the line
    c = exact["entropy"].mean((0, 2))
    assert [claim.place(exact["entropy"], at) for at in (c[0], c[1], 2 * c[0] - c[1])] == pytest.approx([0, 1, -1])
    flat = texts(2.0, noise=0.0, entropies=(2.95, 2.95))
    flat["entropy"][:] = 2.95
    assert math.isnan(claim.place(flat["entropy"], 2.95))
    assert math.isnan(claim.at_entropy(flat["nll"], flat["entropy"], 2.95))


def test_bootstrap_error_is_that_of_the_mean_and_knows_about_seeds():
    """Along the exact slope, noise .3 over 360 texts gives .3 / sqrt(360) = .0158, of which three alike seeds see sqrt(5/3), as the texts'
    noise is in their means as well. Over 40 samples the root mean square of the errors is known to 5%."""
    cells = {("dsl/a", T): texts(2.0, seed=T) for T in range(40)}
    both, alone = ([d.var() for d in claim.bootstrap(cells, 2.95, seeds).values()] for seeds in (True, False))
    assert np.mean(both) ** 0.5 == pytest.approx(0.3 / 360**0.5 * (5 / 3) ** 0.5, rel=0.15)
    assert np.mean(alone) ** 0.5 == pytest.approx(0.3 / 360**0.5, rel=0.05)
    cells = {("dsl/a", T): texts(2.0, by_seed=0.2, seed=T) for T in (4, 8)}
    a, b = claim.bootstrap(cells, 2.95).values()  # seeds at -.2, 0, .2: the mean of 3 drawn with replacement has sd .163 / sqrt(3)
    assert a.std() == pytest.approx(0.2 * (2 / 3) ** 0.5 / 3**0.5, rel=0.25)
    assert (a - b).std() < 0.06  # one model's seeds are drawn together, so they cancel; else .13
    (draws,) = claim.bootstrap({("dsl/a", 4): cells["dsl/a", 4]}, 2.95, seeds=False).values()
    assert draws.std() == pytest.approx(0.3 / 360**0.5, rel=0.25)  # of these three models, were there no others


def test_a_bound_is_told_where_most_resamples_could_not_be_matched():
    point = {("a", 4): 1.0, ("b", 4): 3.0, ("b", 16): 2.0}
    boot = {key: np.full(claim.REPLICATES, value) for key, value in point.items()}
    boot["a", 4][claim.REPLICATES // 4 :] = np.nan
    at = claim.ratio_report(point, boot, {key: key[1] for key in point}, "a", ["b"], [4], [4, 16])["at"][4]
    assert (at["ratio"], at["bound"]) == (4, ">") and np.isnan(at["interval"]).all() and math.isnan(at["censored"])


def test_calls_to_reach_interpolates_in_log_calls():
    curve = [(4, 3.0), (16, 2.0), (64, 2.5), (256, 1.0)]
    assert claim.calls_to_reach(curve, 2.5) == pytest.approx(8)
    assert claim.calls_to_reach(curve, 2.0) == pytest.approx(16)
    assert claim.calls_to_reach(curve, 1.5) == pytest.approx(128)  # between 64, where 2.0 had been reached before, and 256
    assert claim.calls_to_reach(curve, 0.9) == math.inf and claim.calls_to_reach(curve, 3.5) == 4


def scaling(factor, steps, model="dsl", path="posterior", noise=0.1):
    """NLL = 3 - 0.3 ln(factor x calls): `factor` times the quality per call."""
    return {(f"{model}/{path}", T): texts(3 - 0.3 * math.log(factor * T), noise=noise, seed=T + len(model)) for T in steps}


def test_a_model_that_needs_four_times_fewer_calls_has_ratio_four():
    steps = (4, 8, 16, 32, 64, 128, 256)
    every = scaling(4, steps) | scaling(1, steps, "mdlm_more", "remdm") | scaling(0.5, steps, "mdlm_more", "recorded")
    point = {key: claim.at_entropy(c["nll"], c["entropy"], 2.95) for key, c in every.items()}
    boot, nfe = claim.bootstrap(every, 2.95), {key: float(key[1]) for key in every}
    names = ["mdlm_more/remdm", "mdlm_more/recorded"]
    report = claim.ratio_report(point, boot, nfe, "dsl/posterior", names, [4, 8, 16, 32], steps)
    assert 3.6 < report["geometric_mean"] < 4.4 and report["interval"][0] < 4 < report["interval"][1] < 5
    assert all(3 < report["at"][T]["ratio"] < 5 and report["at"][T]["censored"] == 0 for T in (4, 8, 16, 32))
    every_other = {key: calls / (1 + (key[0] != "dsl/posterior")) for key, calls in nfe.items()}  # steps in which the baseline makes a call
    halved = claim.ratio_report(point, boot, every_other, "dsl/posterior", names, [4, 8, 16, 32], steps)
    assert halved["geometric_mean"] == pytest.approx(report["geometric_mean"] / 2)
    back = claim.ratio_report(point, boot, nfe, "mdlm_more/remdm", ["dsl/posterior"], [4, 8, 16, 32], steps)
    assert back["at"][4]["ratio"] == 1 and back["at"][4]["floored"] == 1  # DSL's first 4 calls are more than good enough
    later = math.exp(np.log([back["at"][T]["ratio"] for T in (8, 16, 32)]).mean())
    assert back["geometric_mean"] == pytest.approx(later) and later < 0.4  # without T = 4, at which no ratio can be below 1
    better = scaling(100, steps)
    point |= {key: claim.at_entropy(c["nll"], c["entropy"], 2.95) for key, c in better.items()}
    boot |= claim.bootstrap(better, 2.95)
    report = claim.ratio_report(point, boot, nfe, "dsl/posterior", names, [32], steps)
    assert report["at"][32]["ratio"] == 8 and report["at"][32]["censored"] == 1  # the longest run, 256 calls, does not reach it
    point |= {("mdlm_more/random", T): point["mdlm_more/recorded", 4] for T in steps} | {(name, 256): math.nan for name in names}
    boot |= {("mdlm_more/random", T): boot["mdlm_more/recorded", 4] for T in steps}
    report = claim.ratio_report(point, boot, nfe | {("mdlm_more/random", T): float(T) for T in steps}, "dsl/posterior",
                                [*names, "mdlm_more/random"], [32], steps)
    assert report["at"][32]["ratio"] == 4  # the best are known up to 128 calls; that a worse one goes on to 256 says no more


def duelists(found, every, *pair):
    return {key: found["cells"][f"{key[0]}/{key[1]}"] for key in pair}, every, pair, [torch.arange(5)] * 360, torch.zeros(360, 1)


def test_the_control_is_compared_with_as_mdlm_is(monkeypatch):
    """By the published rule DSL is made twice as good per call as MDLM and as good as the control, by `posterior` four times both."""
    steps, curves = (4, 8, 16, 32, 64), {"dsl/posterior": 4, "dsl/remdm": 2, "mdlm_more/remdm": 1, "masked/remdm": 2, "masked/recorded": 1,
                                        "mdlm_more/mend-recorded": 0.5}  # a rule that DSL does not take
    every = {}
    for name, factor in curves.items():
        every |= scaling(factor, steps, *name.split("/"), noise=0.01)
    for (_, T), c in every.items():
        c |= {"nfe": np.full(c["nll"].shape, T), "features": torch.zeros(360, 1), "texts": [torch.arange(5)] * 360}
    every |= {("dsl/recorded", T): every["masked/recorded", T] for T in steps}
    monkeypatch.setattr(claim, "mauve", lambda *args: torch.ones(2))
    found = claim.compare_all(every, claim.opponents({key: 1.0 for key in every}, "dsl/posterior", steps, 32), steps, 32, 2.95,
                              [torch.arange(5)] * 360, torch.zeros(360, 1))
    cell, nll = found["cells"]["dsl/remdm/8"], every["dsl/remdm", 8]["nll"]
    assert cell.keys() > set(COLUMNS) and cell["gen_ppl"][0] == pytest.approx(math.exp(nll.mean())) and cell["repetition"][0] == 0
    assert cell["distinct_4"] == pytest.approx(1 / 360) and cell["js_4"][0] == 0  # every text is the same, and the real ones are too
    control = found["controls"]["masked"]
    for report, ratio in ((found["published_against_published"], 2), (control["published_against_published"], 1),
                          (found["against_best"], 4), (control["against_best"], 2)):
        assert report["at"][8]["ratio"] == pytest.approx(ratio, rel=0.02)  # .02 is 8 standard errors of noise .01 over 360 texts
    assert set(control["same_rule"]) == {"remdm", "recorded"} and control["same_rule"]["recorded"][8] == pytest.approx([0, 0], abs=0.01)
    assert found["same_rule"]["remdm"][8][0] == pytest.approx(-0.3 * math.log(2), abs=0.01)
    best, _, published, _ = found["duels"]  # 4 calls of DSL, four times as good, against 16 and 32 of MDLM
    assert (best["other"], published["other"]) == ("mdlm_more/remdm/16", "mdlm_more/remdm/32")
    assert best["nll"][0] == pytest.approx(0, abs=0.01)
    assert published["nll"][0] == pytest.approx(0.3 * math.log(2), abs=0.01) and published["every_seed"] is False
    assert claim.duel(*duelists(found, every, ("dsl/posterior", 8), ("mdlm_more/remdm", 8)))["every_seed"] is True
    lost = {**found["cells"], "mdlm_more/remdm/8": {**found["cells"]["mdlm_more/remdm/8"], "nll_by_seed": [math.nan, 3.0, 3.0]}}
    assert claim.duel(*duelists({"cells": lost}, every, ("dsl/posterior", 8), ("mdlm_more/remdm", 8)))["every_seed"] is None


def test_a_cell_and_a_duel_compare_texts_with_as_many_real_ones():
    """Three seeds of 2 x 10 texts, each at random from letters of its own: a cell is compared as a whole, with 60 real texts, a duel seed
    by seed, each with the first 20. Half-widths are Student's: 4.303 standard errors, of the seeds of both or of their differences."""
    g, shape = np.random.default_rng(0), (3, 2, 10)
    real, of_real = g.integers(4, size=(90, 8)), torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
    cells, table, js, overlap, pair = {}, {}, {}, {}, (("dsl/mend", 4), ("mdlm_more/remdm", 16))
    for i, key in enumerate(pair):
        texts_of = [g.integers(2 + i + seed, size=(20, 8)) for seed in range(3)]
        features_of = [torch.randn(20, 4, generator=torch.Generator().manual_seed(9 + i)) + i + seed for seed in range(3)]
        cells[key] = texts(2.0, n=10, seed=i) | {"nfe": np.full(shape, key[1]), "texts": [*map(torch.tensor, np.concatenate(texts_of))],
                                                 "features": torch.cat(features_of)}
        table[key] = claim.describe(cells[key], 2.95, real[:60], of_real[:60])
        of_all = mauve(cells[key]["features"], of_real[:60], range(3))
        assert table[key]["js_4"] == ngram_js(np.concatenate(texts_of), real[:60], 4)
        assert table[key]["mauve"] == pytest.approx([of_all.mean().item(), of_all.std().item()]) and table[key]["num_samples"] == 60
        js[key] = np.array([ngram_js(mine, real[:20], 4)[0] for mine in texts_of])
        overlap[key] = np.array([mauve(mine, of_real[:20], [0]).item() for mine in features_of])
    for paired in (False, True):
        found = claim.duel(table, cells, pair, real, of_real, paired)
        for name, (ours, other) in (("js_4", (js[key] for key in pair)), ("mauve", (overlap[key] for key in pair))):
            error = ((ours - other).var(ddof=1) if paired else ours.var(ddof=1) + other.var(ddof=1)) ** 0.5 / 3**0.5
            assert found[name] == pytest.approx([(ours - other).mean(), 4.303 * error]) and abs(found[name][0]) > 1e-3
    assert (found["ours"], found["other"]) == ("dsl/mend/4", "mdlm_more/remdm/16") and found["nfe"] == [4, 16]


def test_what_cannot_be_matched_proves_nothing():
    steps = (4, 8)
    every = scaling(4, steps) | scaling(1, steps, "mdlm_more", "remdm")
    every["dsl/posterior", 8]["entropy"] -= 1.0
    every |= {("mdlm_more/recorded", T): every["dsl/posterior", 8] for T in steps}  # nor can these
    point = {key: claim.at_entropy(c["nll"], c["entropy"], 2.95) for key, c in every.items()}
    report = claim.ratio_report(point, claim.bootstrap(every, 2.95), {key: float(key[1]) for key in every}, "dsl/posterior",
                                ["mdlm_more/remdm", "mdlm_more/recorded"], [4, 8], steps)
    assert math.isnan(report["geometric_mean"]) and report["matched"] == 0 and math.isnan(report["at"][8]["ratio"])
    assert math.isnan(report["at"][8]["censored"]) and report["at"][4]["ratio"] == 2 and report["at"][4]["interval"] == [2, 2]  # cut off
    assert report["unmatched"] == ["dsl/posterior/8", "mdlm_more/recorded/4", "mdlm_more/recorded/8"]
    every |= scaling(4, (16,)) | scaling(1, (16,), "mdlm_more", "remdm")
    point = {key: claim.at_entropy(c["nll"], c["entropy"], 2.95) for key, c in every.items()}
    boot, calls = claim.bootstrap(every, 2.95), {key: float(key[1]) for key in every}
    for lost, at in ((8, 1), (4, 2)):  # without its longest or its shortest run the baseline is known up to, or from, the other one only
        less = {**point, ("mdlm_more/remdm", lost): math.nan}
        draws = {**boot, ("mdlm_more/remdm", lost): np.full(claim.REPLICATES, math.nan)}
        found = claim.ratio_report(less, draws, calls, "dsl/posterior", ["mdlm_more/remdm"], [4], steps)["at"][4]
        assert found["ratio"] == at and found["censored"] == 1
    less, draws = {**point, ("dsl/posterior", 4): math.nan}, {**boot, ("dsl/posterior", 4): np.full(claim.REPLICATES, math.nan)}
    found = claim.ratio_report(less, draws, calls, "mdlm_more/remdm", ["dsl/posterior"], [4], (4, 8, 16))["at"][4]
    assert found["ratio"] == 4 and found["floored"] == 1  # its shortest run that is known, 16 calls, is more than good enough
    assert math.isnan(claim.calls_to_reach([], 3.0)) and math.isnan(claim.calls_to_reach([(4, 3.0)], math.nan))


def test_difference_covers_the_truth_19_times_in_20():
    """Three seeds each of two models, whose true difference is 1: the interval holds it in at least 95% of 2,000 trials less 3 of its own
    standard errors (.0049); Student's t with 2 degrees of freedom is on the safe side of Welch's 2 to 4."""
    rng = np.random.default_rng(0)
    trials = [claim.difference(rng.normal(3, 0.1, 3), rng.normal(2, 0.1, 3)) for _ in range(2000)]
    assert np.mean([abs(d - 1) < half for d, half in trials]) > 0.95 - 3 * 0.0049
    assert np.mean([abs(d) < half for d, half in trials]) < 0.2  # and it is no wider than it has to be


def test_pairs_of_one_seed_are_compared_with_each_other():
    """Four seeds with a spread of 0.5 that both models share and 0.01 of their own: unpaired, the interval is at least ten times as wide;
    paired, it holds the truth in 95% of 1,000 trials less 3 standard errors (.0069 each)."""
    rng = np.random.default_rng(0)
    shared = rng.normal(2, 0.5, (1000, 4))
    pairs = [(mine, theirs) for mine, theirs in zip(shared + rng.normal(-0.1, 0.01, (1000, 4)), shared + rng.normal(0, 0.01, (1000, 4)))]
    paired, apart = (np.array([claim.difference(*pair, paired=how) for pair in pairs]) for how in (True, False))
    assert np.median(apart[:, 1] / paired[:, 1]) > 10 and 0.95 - 3 * 0.0069 < (abs(paired[:, 0] + 0.1) < paired[:, 1]).mean() < 0.97
    draws = {key: claim.resampled((4, 2, 5), key, 0, paired=True)[0].ravel().tolist() for key in (("dsl/soft", 8), ("mdlm_more/mdlm", 32))}
    assert len(set(map(tuple, draws.values()))) == 1
    assert len({tuple(claim.resampled((4, 2, 5), key, 0)[0].ravel()) for key in draws}) == 2


def test_where_each_seed_has_an_mdlm_of_its_own_the_ratio_is_that_of_pairs():
    """Each DSL needs a quarter of the calls of the MDLM that it comes from, however good that is, so their spread is not the ratio's."""
    steps, shared = (4, 8, 16, 32, 64), np.array([-0.2, 0, 0.2])[:, None, None]
    every = scaling(4, steps, noise=0.01) | scaling(1, steps, "mdlm_more", "remdm", noise=0.01)
    every = {key: {"nll": c["nll"] + shared, "entropy": c["entropy"]} for key, c in every.items()}
    point = {key: claim.at_entropy(c["nll"], c["entropy"], 2.95) for key, c in every.items()}
    seeds = [{key: claim.by_seed(c, 2.95)[s] for key, c in every.items()} for s in range(3)]
    rest = ({key: float(key[1]) for key in every}, "dsl/posterior", ["mdlm_more/remdm"], [4, 8], steps)
    both = [claim.ratio_report(point, claim.bootstrap(every, 2.95, paired=how), *rest, seeds * how)["at"] for how in (True, False)]
    paired, apart = (at[8] for at in both)
    assert paired["by_seed"] == pytest.approx([4, 4, 4], rel=0.05) and "by_seed" not in apart and "student" not in apart
    logs = np.log(paired["by_seed"])  # 4.303: Student's t of three values
    assert np.log(paired["student"]) == pytest.approx(logs.mean() + np.array([-1, 1]) * 4.303 * logs.std(ddof=1) / 3**0.5)
    near = claim.ratio_report(point, claim.bootstrap(every, 2.95), rest[0], rest[1], rest[2], [16], (4, 8, 16, 32), seeds)["at"][16]
    assert np.isnan(near["student"]).all() and near["by_seed"] == [2, 2, 2]  # 32 calls are the longest run there, and not good enough
    assert near["bounds"] == [">"] * 3 and paired["bounds"] == [""] * 3
    lost = [seeds[0], seeds[1] | dict.fromkeys([("mdlm_more/remdm", T) for T in (32, 64)], math.nan), seeds[2]]
    report = claim.ratio_report(point, claim.bootstrap(every, 2.95), *rest[:3], [8], steps, lost)
    assert report["at"][8]["bounds"] == ["", ">", ""] and report["at"][8]["by_seed"][1] == 2  # no more than 16 of its calls are known
    assert np.isnan(report["at"][8]["student"]).all() and report["unmatched"] == []
    assert report["unmatched_by_seed"] == [[], ["mdlm_more/remdm/32", "mdlm_more/remdm/64"], []]
    names, at = ("against_best", "against_published", "published_against_published"), report["at"]
    whole = at[8] | {"ratio": 4.0, "bound": "", "interval": [3.5, 4.5], "censored": 0.0, "floored": 0.0}
    at |= {4: whole | {"ratio": 1.0, "bound": "<", "interval": [1.0, 1.1], "floored": 0.9}, 8: whole | {"student": [3.0, 5.0]},
           16: whole | {"bound": ">", "interval": [3.5, 4.0], "censored": 0.6}}
    line = next(claim.ratio_lines({"best_path": "dsl/a", "controls": {}} | dict.fromkeys(names, report)))
    assert line.endswith("dsl/a against best of mdlm_more, at T = 8: 4.0 (3.5 to 4.5; Student's t 3.0 to 5.0); "
                         "4: <1.0 (<1.0 to 1.1); 16: >4.0 (3.5 to >4.0)")
    assert np.diff(paired["interval"])[0] < 0.2 * np.diff(apart["interval"])[0]


def test_the_claim_is_decided_against_the_best_sampler_at_4t_and_the_published_one_at_8t():
    steps = (4, 8, 16, 32, 64, 128, 256)
    point = {("dsl/posterior", T): 2.0 for T in steps} | {("mdlm_more/sde", T): math.nan for T in steps}
    point |= {("mdlm_more/remdm", T): 3.0 for T in steps} | {("mdlm_more/recorded", T): 2.5 if T != 64 else 3.5 for T in steps}
    pairs = dict(claim.opponents(point, "dsl/posterior", steps, 128)[:4])
    assert pairs[("dsl/posterior", 16)] == ("mdlm_more/remdm", 64) and pairs[("dsl/posterior", 32)] == ("mdlm_more/recorded", 128)
    published = claim.opponents(point, "dsl/posterior", steps, 128)[4:]
    assert published == [(("dsl/posterior", T), ("mdlm_more/remdm", 8 * T)) for T in (4, 8, 16, 32)]
