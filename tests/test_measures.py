"""measures.py: what is read off curves of known shape, and a whole run on the toy, whose numbers are those of its files."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pages import README, RESULTS, ROOT, gain, row_of, rows_below, tells, told_ratio, under

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
    assert [p["entropy_2"] for p in seen["all"]] == pytest.approx([conditional_entropy(t, 2) for t in all_texts])
    corpus = measures.ngram_shares(measures.load_tokens("toy", "train", cfg.data_dir), 4)
    assert [p["js_4"] for p in seen["by_seed"][2]] == pytest.approx([measures.ngram_js(t[12:], real[:6], 4)[0] for t in all_texts])
    assert [p["mmd_4"] for p in seen["by_seed"][2]] == pytest.approx([measures.ngram_mmd(t[12:], real, corpus, 4) for t in all_texts])
    for what in measures.LOWEST:
        assert [p[what] for p in seen["all"]] == pytest.approx(np.mean([[p[what] for p in of] for of in seen["by_seed"]], 0))
    assert found["real"]["js_4"] == measures.ngram_js(real[6:12], real[:6], 4)[0]
    of_seed = measures.qualities(seen["by_seed"][1], measures.of_real_text(real, features, 6, corpus))
    assert found["cells"]["dsl/mend/4"]["by_seed"][1] == {what: None if math.isnan(x) else x for what, x in of_seed.items()}

    measures.main(replace(cfg, sampler="--exact_doubt", results="results/exact"))
    exact = json.loads((tmp_path / "results" / "exact.json").read_text())["cells"]
    assert exact["dsl/mend/4"]["nfe"] > 2 * found["cells"]["dsl/mend/4"]["nfe"]
    assert exact["mdlm_more/remdm/4"]["all"] == found["cells"]["mdlm_more/remdm/4"]["all"]  # a path that asks for no doubt

    for other, match in (({"other": "mdlm/remdm"}, "has no mdlm/remdm: choose --other of"), ({"texts": 13}, "39 .* there are 36: lower"),
                         ({"ours": "mend"}, "has no mend: choose --ours of"), ({"claim": "x"}, "x.json holds no claim .*run reproduce")):
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
        "claim_scratch_D128_again_measures", "claim_scratch_D128_again_measures_control", "claim_cool_again_measures",
        "claim_D128_measures"]  # in its order


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


BASE, TUNED, CONTROL, SCRATCH, OF_SCRATCH, COOL, FIRST = map(measured, PAGE)
MDLM, MASKED = "mdlm_more/mend-recorded", "masked/mend-recorded"


def lower(of, a, b, what="entropy_2"):
    """How much lower b is than a over the seeds, of two cells of a json, or of several."""
    runs, digits = of if isinstance(of, tuple) else (of,), 3 if what in measures.LOWEST else 2
    return gain(*([c[what] for run in runs for c in run["cells"][cell]["by_seed"]] for cell in (a, b)), digits=digits)


def less(of, a, other, b, what):
    """The same for all texts of cells of two jsons."""
    return of["cells"][a]["all"][what] - other["cells"][b]["all"][what]


def worth(of, what, T="8", ends=None):
    """How many calls of the other T of DSL's are worth, with 95%; then without, and seed by seed."""
    at = of["ratios"][what][T]
    return told_ratio(at | {"ratio": at["ratio"][0]}, ends=ends)


def alone(of, what, T="8", digits=1):
    return f"{of['ratios'][what][T]['ratio'][0]:.{digits}f}"


def by_seed(of, what, T="8"):
    return "(" + ", ".join(f"{bound} {value:.0f}" if bound else f"{value:.1f}" for value, bound in of["ratios"][what][T]["by_seed"]) + ")"


def test_the_page_tells_how_much_lower_an_nll_is_and_where_pairs_of_letters_stand():
    """The entropy of a letter given the one before is read where that of letters is real text's."""
    said, cells = under(RESULTS["measures"]), ("dsl/mend/8", "dsl/mend/16", f"{MDLM}/8", f"{MDLM}/64")
    points = [BASE["cells"][cell]["temperatures"]["all"] for cell in cells]
    even = [np.interp(BASE["real"]["entropy"], *zip(*((p["entropy"], p["entropy_2"]) for p in of))) for of in points]
    of_8, of_16, given_8, given_16 = (f"{less(BASE, f'{MDLM}/{T}', BASE, f'dsl/mend/{T}', what):.2f}"
                                      for what in ("entropy", "entropy_2") for T in (8, 16))
    assert tells(said, f"8, {of_8}, 8, 16, {of_16}, {given_8}, {given_16}",
                 "{:.2f}, {:.2f} 8, {:.2f} 16, {:.2f} 8, {:.2f} 64".format(BASE["real"]["entropy_2"], *even))
    assert tells(said, worth(BASE, "entropy_2"), lower(BASE, f"{MDLM}/64", "dsl/mend/16"),
                 f"8, {lower(BASE, 'dsl/mend/8', f'{MDLM}/32')}, 16")
    assert tells(said, lower(BASE, "dsl/mend/16", f"{MDLM}/16", "js_4"))


def test_the_page_tells_what_settings_that_4_grams_chose_change():
    said = under(RESULTS["measures"], "With settings that 4-grams chose")
    of_16 = gain(*([c["js_4"] for c in of["cells"]["dsl/mend/16"]["by_seed"]] for of in (BASE, TUNED)), digits=3)
    nearer = [f"{less(BASE, cell, TUNED, cell, 'js_4'):.3f}" for cell in ("dsl/mend/8", f"{MDLM}/8")]
    assert tells(said, "16, {}, 8, {}, {}, 8".format(of_16, *nearer),
                 *(alone(TUNED, "js_4", T) + by_seed(TUNED, "js_4", T) for T in ("8", "16")))
    assert tells(said, f"{alone(TUNED, 'entropy')}, {alone(BASE, 'entropy')}", worth(TUNED, "entropy_2"),
                 f"16, {worth(TUNED, 'entropy_2', '16')}")
    drafts = {min((e for e in TUNED["tuning"]["dsl/mend"] if e["T"] == T), key=lambda e: e["js_4"])["setting"]["draft"] for T in (8, 16)}
    assert drafts == {0.8} and "four fifths" in said.split("*Only in part.*")[1]


def test_the_page_tells_the_ratios_to_the_control_and_from_scratch():
    said, scratch = (under(RESULTS["measures"], heading) for heading in ("Against the control", "From scratch"))
    assert tells(said, worth(CONTROL, "entropy_2"), worth(CONTROL, "entropy"), f"16, 32, {lower(CONTROL, f'{MASKED}/32', 'dsl/mend/16')}")
    assert tells(said, f"16, {worth(CONTROL, 'js_4')}", worth(CONTROL, "js_4", "16"))
    assert tells(scratch, *(lower(SCRATCH, f"{MDLM}/32", f"dsl/mend/{T}", "js_4") for T in (8, 16)),
                 *(f"{T}, {lower(SCRATCH, f'{MDLM}/{4 * T}', f'dsl/mend/{T}')}" for T in (16, 8)))
    assert tells(scratch, worth(OF_SCRATCH, "js_4"), f"16, {worth(OF_SCRATCH, 'js_4', '16')}", worth(OF_SCRATCH, "entropy_2"))


def test_the_page_tells_what_cooling_changes():
    cells, last = ("dsl/mend/8", "dsl/mend/16", f"{MDLM}/8", f"{MDLM}/16"), f"{MDLM}/32"
    letters = [less(BASE, cell, COOL, cell, "entropy") for cell in BASE["cells"]]
    pairs = [*(less(BASE, cell, COOL, cell, "entropy_2") for cell in cells), less(COOL, last, BASE, last, "entropy_2")]
    nearer = [less(BASE, cell, COOL, cell, "js_4") for cell in (f"{MDLM}/4", f"{MDLM}/8", f"{MDLM}/16", "dsl/mend/8", "dsl/mend/16")]
    assert all(less(BASE, f"{MDLM}/{T}", COOL, f"{MDLM}/{T}", "js_4") < nearer[2] for T in (32, 64))
    assert tells(under(RESULTS["measures"], "With a temperature that falls"), f"{min(letters):.2f} to {max(letters):.2f}",
                 "{:.2f}, {:.2f}: 8, 16; {:.2f}, {:.2f}: 8, 16, 32: {:.2f}".format(*pairs),
                 "{:.3f} 4, {:.3f} 8, {:.3f}, {:.3f} 8, {:.3f} 16".format(*nearer), f"16, {worth(COOL, 'js_4', '16', ends=2)}")


def of_six(what, T="8"):
    """How many calls T of DSL's are worth over the pairs of both runs."""
    each = [x for of in (FIRST, BASE) for x, _ in of["ratios"][what][T]["by_seed"]]
    middle, half = difference(np.log(each), np.zeros(len(each)), paired=True)
    return told_ratio({"ratio": math.exp(middle), "student": [math.exp(middle - half), math.exp(middle + half)]}, 2)


def test_the_page_tells_what_six_pairs_and_an_unbiased_distance_say():
    said, both = under(RESULTS["measures"], "Seeds 0 to 2, and without the bias of JS"), (FIRST, BASE)
    assert tells(said, worth(FIRST, "entropy_2"), of_six("entropy_2"), of_six("js_4"), f"16, {of_six('js_4', '16')}", of_six("entropy"))
    assert tells(said, f"8, {lower(both, 'dsl/mend/8', f'{MDLM}/32')}", f"64, {lower(both, f'{MDLM}/64', 'dsl/mend/16')}")
    assert tells(said, *(f"{T}, {lower(FIRST, f'dsl/mend/{T}', f'{MDLM}/{T}', 'mmd_4')}" for T in (8, 16)))
    assert tells(said, ", ".join(f"{FIRST['cells'][f'{MDLM}/{T}']['all']['mmd_4']:.3f}" for T in (8, 16, 32, 64)))
    assert tells(RESULTS["predictions"], lower(both, "dsl/mend/16", f"{MDLM}/16", "js_4"))
    assert tells(RESULTS["README"], of_six("entropy_2"), lower(both, f"{MDLM}/64", "dsl/mend/16"), of_six("js_4"), of_six("js_4", "16"))


def test_the_readme_tells_the_ratios_by_other_measures():
    assert tells(row_of(README, "**Other measures"), f"{worth(BASE, 'entropy_2')}, {alone(BASE, 'entropy')}", of_six("entropy_2"),
                 lower((FIRST, BASE), f"{MDLM}/64", "dsl/mend/16"), worth(BASE, "js_4"), of_six("js_4"), f"16, {of_six('js_4', '16')}",
                 by_seed(FIRST, "mmd_4").strip("()"))
    assert tells(row_of(README, "Is it the Gaussian evidence"), worth(CONTROL, "entropy_2"), worth(CONTROL, "js_4"),
                 f"16, {worth(CONTROL, 'js_4', '16')}")
