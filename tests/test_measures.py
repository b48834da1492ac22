"""measures.py: what is read off curves of known shape, and a whole run on the toy, whose numbers are those of its files."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pages import README, RESULTS, ROOT, gain, rows_below

import measures
import reproduce_config
from claim import difference
from config import Problem, parse
from metrics import conditional_entropy


def asked(flags=""):
    return parse(measures.Config, flags.split())


def test_quality_is_read_where_the_entropy_is_that_of_real_text_or_at_the_best_temperature():
    """NLL = entropy + 0.5 at five temperatures. The other entropy is half of it, and falls again at the hottest, across the target."""
    points = [{"nll": h + 0.5, "entropy": h, "entropy_2": min(h, 5.2 - h) / 2, "js_4": 1 + abs(h - 3), "mmd_4": abs(h - 3),
               "one_minus_mauve": h} for h in (2.0, 2.5, 3.0, 3.5, 4.0)]
    found = measures.qualities(points, {"entropy": 2.75, "entropy_2": 1.05})
    assert math.isnan(found.pop("one_minus_mauve"))  # the coldest is the best of these, and a colder one may be better
    assert found == pytest.approx({"entropy": 3.25, "entropy_2": 2.6, "js_4": 1, "mmd_4": 0})
    out = measures.qualities(points, {"entropy": 4.1, "entropy_2": 1.4})
    assert math.isnan(out["entropy"]) and math.isnan(out["entropy_2"])  # more varied than any


def test_real_text_is_measured_by_as_many_texts():
    g = torch.Generator().manual_seed(0)
    real, features = list(torch.randint(4, (7, 12), generator=g)), torch.randn(7, 5, generator=g)
    corpus = measures.ngram_shares(torch.cat(real), 4)
    found = measures.of_real_text(real, features, 3, corpus)
    assert found["entropy_2"] == pytest.approx((conditional_entropy(real[:3], 2) + conditional_entropy(real[3:6], 2)) / 2)
    assert found["js_4"] == measures.ngram_js(real[3:6], real[:3], 4)[0] > 0
    assert found["mmd_4"] == measures.ngram_mmd(real[3:6], real[:3], corpus, 4)
    assert found["one_minus_mauve"] == 1 - measures.mauve(features[3:6], features[:3], range(3)).mean().item()
    assert measures.of_real_text(real, features, 4, corpus).keys() == {"entropy", "entropy_2"}  # there are no 4 others


def test_the_ratio_of_calls_is_that_of_the_curves():
    """The other's quality is 4 - log2(T) / 4, so it needs 16 calls for 3, which ours has with 8, and 2^0.2 times fewer for 0.05 more."""
    cfg, shifts = asked("--at 8 --calls 4 8 16 32 64"), np.array([-0.05, 0, 0.05])

    def cell(T, value, by_seed, js=0.0):
        of = [{"entropy": value + x, "entropy_2": value + 0.7 + x, "js_4": value - js + x, "mmd_4": x, "one_minus_mauve": math.nan}
              for x in (0, *by_seed)]
        return {"nfe": float(T), "all": of[0], "by_seed": of[1:]}

    found = {(cfg.other, T): cell(T, 4 - math.log2(T) / 4, (0, 0, 0)) for T in cfg.calls} | {(cfg.ours, 8): cell(8, 3.0, shifts, js=0.7)}
    for c in (found[cfg.ours, 8]["all"], *found[cfg.ours, 8]["by_seed"]):
        c["entropy_2"] += 0.7
    found[cfg.other, 4]["by_seed"][0]["entropy_2"] = math.nan  # the other's shortest run that is known has 8 calls then
    out = {what: of[8] for what, of in measures.compare(found, cfg).items()}
    assert out["entropy"]["ratio"] == (pytest.approx(2), "")
    assert [x for x, _ in out["entropy"]["by_seed"]] == pytest.approx(list(2 * 2 ** (-4 * shifts)))
    half = 4.303 * 4 * math.log(2) * 0.05 / 3**0.5
    assert out["entropy"]["student"] == pytest.approx([2 * math.exp(-half), 2 * math.exp(half)])
    assert out["entropy_2"]["by_seed"] == [(1, "<"), (0.5, "<"), (0.5, "<")] and out["js_4"]["ratio"] == (8, ">")
    assert measures.ratio((8.0, 0.5), [(8.0, 0.9), (16.0, math.nan), (32.0, 0.4)]) == (4, "<")  # what 16 calls reach is not known
    value, bound = measures.ratio((8.0, 0.5), [(8.0, 0.9), (32.0, 0.4), (64.0, math.nan)])
    assert 3 < value < 3.1 and not bound
    assert np.isnan([*out["entropy_2"]["student"], *out["js_4"]["student"], out["one_minus_mauve"]["ratio"][0]]).all()


def test_a_whole_run_tells_what_stands_in_its_files(claimed, tmp_path, capsys):
    flags = "--data toy --out_dir out/reproduce --claim results/claim --other mdlm_more/remdm --at 4 --calls 4 16"
    cfg = asked(f"{flags} --factors 2 0.5 1 --texts 6 --workers 1")
    measures.main(cfg)
    found = json.loads((tmp_path / "results" / "claim_measures.json").read_text())
    assert (tmp_path / "results" / "claim_measures.png").exists() and "ratio at 4" in capsys.readouterr().out
    assert list(found["cells"]) == ["dsl/mend/4", "mdlm_more/remdm/4", "mdlm_more/remdm/16"] and found["num_samples"] == 18
    judge, real, features, *_ = measures.prepare(measures.claimed(cfg)[1])
    assert found["real"]["entropy_2"] == pytest.approx(np.mean([conditional_entropy(real[i : i + 18], 2) for i in (0, 18)]))
    seen, temperatures, all_texts = found["cells"]["dsl/mend/4"]["temperatures"], set(), [[], [], []]
    for s, seed in enumerate((0, 1, 2)):
        files = {float(f.name.split("-")[2]): f for f in (tmp_path / "out/reproduce/samples_measures/dsl/mend").glob(f"4-{seed}-*.jsonl")}
        texts = [[json.loads(line)["ids"] for line in files[t].read_text().splitlines()] for t in sorted(files)]
        temperatures.add(tuple(sorted(files)))
        assert [len(t) for t in texts] == [6, 6, 6]
        assert [p["entropy_2"] for p in seen["by_seed"][s]] == pytest.approx([conditional_entropy(t, 2) for t in texts])
        all_texts = [some + more for some, more in zip(all_texts, texts)]
    (told,) = temperatures
    assert np.array(told) / told[1] == pytest.approx([0.5, 1, 2], abs=0.01)
    assert [p["nll"] for p in seen["all"]] == pytest.approx(np.mean([[p["nll"] for p in of] for of in seen["by_seed"]], 0))
    assert [p["js_4"] for p in seen["all"]] == pytest.approx([measures.ngram_js(t, real[:18], 4)[0] for t in all_texts])
    corpus = measures.ngram_shares(measures.load_tokens("toy", "train", cfg.data_dir), 4)
    assert [p["mmd_4"] for p in seen["all"]] == pytest.approx([measures.ngram_mmd(t, real, corpus, 4) for t in all_texts])
    of_seed = measures.qualities(seen["by_seed"][1], measures.of_real_text(real, features, 6, corpus))
    assert found["cells"]["dsl/mend/4"]["by_seed"][1] == {what: None if math.isnan(x) else x for what, x in of_seed.items()}

    measures.main(replace(cfg, sampler="--exact_doubt", results="results/exact"))
    exact = json.loads((tmp_path / "results" / "exact.json").read_text())["cells"]
    assert exact["dsl/mend/4"]["nfe"] > 2 * found["cells"]["dsl/mend/4"]["nfe"]
    assert exact["mdlm_more/remdm/4"]["all"] == found["cells"]["mdlm_more/remdm/4"]["all"]  # a path that asks for no doubt

    for other, match in (({"other": "mdlm/remdm"}, "has no mdlm/remdm: choose --other of"), ({"texts": 13}, "39 .* there are 36: lower"),
                         ({"ours": "mend"}, "has no mend: choose --ours of"), ({"claim": "x"}, "x.json holds no claim .* the --claim of")):
        with pytest.raises(Problem, match=match):
            measures.main(replace(cfg, **other))
    stored = json.loads((tmp_path / "results" / "claim.json").read_text())
    (tmp_path / "results" / "other.json").write_text(json.dumps(stored | {"judge": "another"}))
    with pytest.raises(Problem, match="is not that of results/other.json"):
        measures.main(replace(cfg, claim="results/other"))


def test_settings_are_chosen_by_4_grams_of_the_thrown_away_seed(claimed, tmp_path, monkeypatch):
    """Of those that the claim tried, with every second gamma, each judged at the best of three temperatures; the best is sampled."""
    flags = "--data toy --out_dir out/reproduce --claim results/claim --other mdlm_more/remdm --at 4 --calls 4 16 --workers 1"
    cfg = asked(f"{flags} --factors 2 0.5 1 --texts 6 --tune 5")
    measures.main(cfg)
    found = json.loads((tmp_path / "results" / "claim_measures_tuned.json").read_text())["tuning"]
    (stored, claim), folder = measures.claimed(cfg), tmp_path / "out/reproduce/samples_measures"
    _, real, *_ = measures.prepare(claim)
    known = [e for e in stored["tuning"]["dsl/mend"] if e["T"] == 8 and e["setting"].get("gamma") in (None, 0.5, 8)]
    assert len(known) == len(found["dsl/mend"]) > 2 and [e["T"] for e in found["mdlm_more/remdm"]] == [8, 16]
    for before, e in zip(known, found["dsl/mend"]):
        name, js = "-".join(f"{key}{value:g}" for key, value in e["setting"].items()), []
        for factor in (0.6, 0.75, 0.9):
            file = folder / f"dsl/mend/8-lr{stored['learning_rates']['dsl']}-{before['temperature'] * factor:.3f}-{name}.jsonl"
            texts = [json.loads(line)["ids"] for line in file.read_text().splitlines()]
            assert len(texts) == 5
            js.append(measures.ngram_js(texts, real[:5], 4)[0])
        assert e == before | {"js_4": pytest.approx(min(js))}
    best = min(found["dsl/mend"], key=lambda e: e["js_4"])
    name = "-".join(f"{key}{value:g}" for key, value in best["setting"].items())
    drawn = {f.name.split("-", 2)[2] for f in (folder / "dsl" / "mend").glob("4-1-*.jsonl")}
    assert drawn == {f"{best['temperature'] * factor:.3f}-{name}.jsonl" for factor in (0.5, 1, 2)}

    with pytest.raises(Problem, match="37 texts .* there are 36: lower --texts or --tune"):
        measures.main(replace(cfg, tune=37))
    stored["tuning"]["mdlm/remdm"] = stored["tuning"]["mdlm_more/remdm"]  # of one training for all seeds
    (tmp_path / "results" / "other.json").write_text(json.dumps(stored))
    monkeypatch.setattr(reproduce_config, "CURVES", [*reproduce_config.CURVES, reproduce_config.Curve("mdlm", "remdm", [{}])])
    measures.main(replace(cfg, claim="results/other", other="mdlm/remdm"))
    found = json.loads((tmp_path / "results" / "other_measures_tuned.json").read_text())
    assert found["tuning"].keys() == {"dsl/mend", "mdlm/remdm"} and "mdlm/remdm/16" in found["cells"]
    for e in stored["tuning"]["dsl/mend"]:
        e["setting"]["gamma"] = 3.0
    (tmp_path / "results" / "other.json").write_text(json.dumps(stored))
    with pytest.raises(Problem, match="results/other.json tried no setting of dsl/mend with gamma in"):
        measures.main(replace(cfg, claim="results/other"))


@pytest.mark.parametrize("flags, told", [
    *((flags, "two or more above 0") for flags in ("--texts 1", "--tune 1", "--tune -2", "--factors 0 1", "--factors 1 1", "--at 1")),
    ("--results results/claim_D128", "overwritten"), ("--sampler=--exact_doubt", "name other --results"),
    ("--sampler=--exact_doubt --results y --tune 9", "leave out --tune"), ("--sampler=--no_such --results y", "unrecognized"),
    ("--sampler=--steps=4 --results y", "not --steps")])
def test_impossible_flags_are_usage_errors(flags, told, capsys):
    with pytest.raises(SystemExit):
        asked(flags)
    assert told in capsys.readouterr().err


def measured(name):
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def heads(name):
    """Of the two tables of a json: its cells, and the ratios of calls."""
    who = {"dsl": "DSL", "masked": "the control", "mdlm_more": "MDLM" if "scratch" in name else "MDLM continued"}
    cells = [f"{who[key.split('/')[0]]}, T = {key.rsplit('/', 1)[1]}" for key in measured(name)["cells"]]
    return f"| | {' | '.join(cells)} | real text |", f"| calls of {cells[-1].split(',')[0]} for those of DSL | T = 8 | T = 16 |"


PAGE = ["claim_D128_again_measures", "claim_D128_again_measures_tuned", "claim_D128_again_measures_control",
        "claim_scratch_D128_again_measures", "claim_scratch_D128_again_measures_control", "claim_cool_again_measures"]  # in its order


@pytest.mark.parametrize("name", PAGE)
def test_the_page_tells_the_numbers_of_its_jsons(name):
    found, before = measured(name), [heads(other) for other in PAGE[: PAGE.index(name)]]
    cells, calls = (list(rows_below(RESULTS["measures"], head))[[two[i] for two in before].count(head)]
                    for i, head in enumerate(heads(name)))

    def told(x, digits):
        return "-" if x is None else f"{x:.{digits}f}"

    def ratio(at):
        (value, bound), student = at["ratio"], at["student"]
        each = ", ".join("-" if x is None else f"{b} {x:.1f}".strip() for x, b in at["by_seed"])
        return (f"{bound} {told(value, 1)} ({each}".strip() + (")" if student[0] is None else f"; {student[0]:.1f} to {student[1]:.1f})"))

    asked = [what for what in (*measures.MATCHED, *measures.LOWEST) if what in found["ratios"]]  # MMD came later than most
    for (_, *values), what in zip(cells, asked, strict=True):
        real = found["real"]["nll" if what in measures.MATCHED else what]
        digits = 2 if what in measures.MATCHED else 3
        assert values == [told(x, digits) for x in (*(c["all"][what] for c in found["cells"].values()), real)], what
    for (_, *values), what in zip(calls, asked, strict=True):
        assert values == [ratio(found["ratios"][what][T]) for T in ("8", "16")], what


def test_what_the_page_and_the_readme_say_of_it():
    before, after = measured("claim_D128_again_measures"), measured("claim_cool_again_measures")
    of, rival = before["cells"], "mdlm_more/mend-recorded"

    def seeds(cell, what="entropy_2"):
        return [c[what] for c in of[cell]["by_seed"]]

    def less(a, b, what):
        return f"{of[a]['all'][what] - of[b]['all'][what]:.2f}"

    pairs = [less(f"{rival}/{T}", f"dsl/mend/{T}", what) for what in ("entropy", "entropy_2") for T in (8, 16)]
    even = [f"{np.interp(before['real']['entropy'], *zip(*((p['entropy'], p['entropy_2']) for p in of[cell]['temperatures']['all']))):.2f}"
            for cell in ("dsl/mend/8", "dsl/mend/16", f"{rival}/8", f"{rival}/64")]
    middle, half = difference(seeds("dsl/mend/16", "js_4"), seeds(f"{rival}/16", "js_4"), paired=True)
    gains = [of[cell]["all"]["entropy_2"] - after["cells"][cell]["all"]["entropy_2"]
             for cell in ("dsl/mend/8", "dsl/mend/16", f"{rival}/8", f"{rival}/16", f"{rival}/32")]
    unigrams, js = ([of[cell]["all"][what] - after["cells"][cell]["all"][what] for cell in of] for what in ("entropy", "js_4"))
    js = dict(zip(of, js))
    said = [f"are {pairs[0]} nats better than 8 of MDLM and 16 of them {pairs[1]} better",
            f"given the letter before it is {pairs[2]} and {pairs[3]}",
            f"{even[0]} for DSL with 8 calls, {even[1]} with 16, {even[2]} for MDLM with 8 and {even[3]} with 64",
            f"by {gain(seeds(f'{rival}/64'), seeds('dsl/mend/16')).replace(' (', ' in the mean (')}",
            f"undecided at T = 8, {gain(seeds('dsl/mend/8'), seeds(f'{rival}/32'))}, and at 16",
            f"by {middle:.3f} in the mean of the seeds ({middle - half:.3f} to {middle + half:.3f})",
            f"{gains[0]:.2f} and {gains[1]:.2f} for DSL with 8 and 16 calls, {gains[2]:.2f} and {gains[3]:.2f} for MDLM with 8 and 16, "
            f"and with 32, at the hottest temperature that was tried, it is {-gains[4]:.2f} worse",
            f"{min(unigrams):.2f} to {max(unigrams):.2f} nats where unigrams are matched",
            f"MDLM gains {js[f'{rival}/4']:.3f} with 4 calls, {js[f'{rival}/8']:.3f} with 8 and nothing with more",
            f"DSL {js['dsl/mend/8']:.3f} with 8 and nothing with 16"]
    assert not [words for words in said if words.replace("-", "−") not in RESULTS["measures"]], said
    for what, T, form in (("entropy_2", "8", "not by that of letters: {:.1f} times ({:.1f} to {:.1f}; these"),
                          ("js_4", "8", "each at its best temperature: {:.1f} times ({:.1f} to {:.1f})"),
                          ("js_4", "16", "and its 16 only {:.1f} times ({:.2f} to {:.2f})")):
        at = before["ratios"][what][T]
        assert form.format(at["ratio"][0], *at["student"]) in README
    assert f"these texts have {before['ratios']['entropy']['8']['ratio'][0]:.1f} by unigrams" in README
    by = gain(seeds(f"{rival}/64"), seeds("dsl/mend/16")).replace(" (", " nats (")
    assert f"for DSL's 16 still more than four times, by {by}" in README


def test_what_they_say_of_the_settings_that_4_grams_chose_of_the_control_and_from_scratch():
    base, tuned, control, scratch, of_scratch = map(measured, PAGE[:5])
    mdlm, masked = "mdlm_more/mend-recorded", "masked/mend-recorded"

    def seeds(of, cell, what="entropy_2"):
        return [c[what] for c in of["cells"][cell]["by_seed"]]

    def worth(of, what, T):
        at = of["ratios"][what][T]
        return "{:.1f} ({:.1f} to {:.1f})".format(at["ratio"][0], *at["student"])

    nearer = [f"{base['cells'][cell]['all']['js_4'] - tuned['cells'][cell]['all']['js_4']:.3f}"
              for cell in ("dsl/mend/8", "dsl/mend/16", f"{mdlm}/8")]
    of_16, by = difference(seeds(base, "dsl/mend/16", "js_4"), seeds(tuned, "dsl/mend/16", "js_4"), paired=True)
    to_32, off = difference(seeds(scratch, f"{mdlm}/32", "js_4"), seeds(scratch, "dsl/mend/16", "js_4"), paired=True)
    of_8, about = difference(seeds(scratch, f"{mdlm}/32", "js_4"), seeds(scratch, "dsl/mend/8", "js_4"), paired=True)
    said = [f"by {nearer[1]} (by seed {of_16:.3f}, {of_16 - by:.3f} to {of_16 + by:.3f}), so",
            f"with 8 by {nearer[0]}. MDLM comes nearer by {nearer[2]} with 8",
            f"worth {tuned['ratios']['entropy']['8']['ratio'][0]:.1f} times as many of MDLM's by matched unigrams",
            f"given the letter before {worth(tuned, 'entropy_2', '8')}", f"its 16 {worth(tuned, 'entropy_2', '16')} instead",
            f"worth {worth(control, 'entropy_2', '8')}".replace(" (", " times as many of the control's ("),
            f"worth {worth(control, 'entropy', '8')}, and its 16",
            f"in each pair, by {gain(seeds(control, f'{masked}/32'), seeds(control, 'dsl/mend/16'))}",
            f"{worth(control, 'js_4', '8')} and".replace(" (", " times ("), f"and {worth(control, 'js_4', '16')}, as against",
            f"by {to_32:.3f} than MDLM's best, 32 ({to_32 - off:.3f} to {to_32 + off:.3f})".replace("-", "−"),
            f"{of_8:.3f} in the mean for DSL, {of_8 - about:.3f} to {of_8 + about:.3f})".replace("-", "−"),
            f"its 16 calls are {gain(seeds(scratch, f'{mdlm}/64'), seeds(scratch, 'dsl/mend/16'))}".replace(
                " (", " nats better than MDLM's 64 ("),
            f"its 8 {gain(seeds(scratch, f'{mdlm}/32'), seeds(scratch, 'dsl/mend/8'))}".replace(" (", " better than MDLM's 32 ("),
            f"as DSL, {worth(of_scratch, 'js_4', '8')}".replace(" (", " times ("), f"its 16 {worth(of_scratch, 'js_4', '16')}. Given",
            f"before it needs {worth(of_scratch, 'entropy_2', '8')}".replace(" (", " times (")]
    assert not [words for words in said if words not in RESULTS["measures"]], said
    best = {T: min((e for e in tuned["tuning"]["dsl/mend"] if e["T"] == T), key=lambda e: e["js_4"])["setting"]["draft"] for T in (8, 16)}
    assert best == {8: 0.8, 16: 0.8} and [round(tuned["ratios"]["js_4"][T]["ratio"][0], 1) for T in ("8", "16")] == [1.0, 0.5]
    assert min(scratch["ratios"][what]["8"]["ratio"][1] for what in ("entropy_2", "js_4")) == ">"
    assert scratch["ratios"]["js_4"]["8"]["ratio"][0] > 7.9 and scratch["ratios"]["entropy_2"]["8"]["ratio"][0] > 7.9


def test_what_the_readme_says_of_these():
    _, tuned, control, scratch, of_scratch = map(measured, PAGE[:5])
    for form, of, what, T in (("Given the letter before, {} times ({} to {}) |", of_scratch, "entropy_2", "8"),
                              ("by 4-grams the control needs {} times ({} to {}):", of_scratch, "js_4", "8"),
                              ("Given the letter before it is {} times ({} to {});", control, "entropy_2", "8"),
                              ("by 4-grams {} times ({} to {}) and, for", control, "js_4", "8"),
                              ("DSL's 16, a loss, {} ({} to {})", control, "js_4", "16"),
                              ("given the letter before {} times ({} to {}), and for DSL's 16", tuned, "entropy_2", "8"),
                              ("DSL's 16 {} times ({} to {}); by unigrams", tuned, "entropy_2", "16"),
                              ("By 4-grams {} ({} to {}) and 0.5 times", tuned, "js_4", "8")):
        at = of["ratios"][what][T]
        assert form.format(*(f"{x:.1f}" for x in (at["ratio"][0], *at["student"]))) in README, form

    def each(of, what, T="8"):
        return ", ".join(f"{value:.1f}" if not bound else f"> {value:.0f}" for value, bound in of["ratios"][what][T]["by_seed"])

    assert f"and {tuned['ratios']['js_4']['16']['ratio'][0]:.1f} times (by seed {each(tuned, 'js_4', '16')}), no better" in README

    assert f"(by seed {each(scratch, 'entropy_2')} given the letter before; {each(scratch, 'js_4')} by 4-grams)" in README
    assert f"by unigrams {tuned['ratios']['entropy']['8']['ratio'][0]:.1f} times (by seed {each(tuned, 'entropy')})" in README
