"""The tables of README.md and results/*.md, and some of their sentences, tell the numbers of their jsons; any other value with an error
occurs in one of them."""

import json
import math
import re

import numpy as np
import pytest

import claim
from pages import MODELS, README, RESULTS, ROOT, by_seed, claims, gain, row_of, rows_below, tells, times, told_ratio, under, value
from reproduce_config import settings_at


def test_numbers_are_told_whole_in_order_and_on_one_line():
    text = "It is 2.8 times (2.3 to 3.7),\nthe control −0.10 at T = 16 and > 4, then 1.5 ± 0.2 times."
    for groups in (["2.8 (2.3 to 3.7)"], ["2.8", "2.3 to 3.7"], ["-0.10, 16, > 4", "1.5 ± 0.2"], ["16"]):
        assert tells(text, *groups), groups
    for groups in (["2.9"], ["2.8 (2.3 to 3.8)"], ["2.3 to 3.7", "2.8"], ["2.8, 3.7"], ["2.8", "-0.10"], ["0.10"], ["4"], ["8"], ["2"],
                   ["-0.1"], ["1.5 to 0.2"], ["-0.10, > 4, 16"]):
        assert not tells(text, *groups), groups
    with pytest.raises(ValueError, match="no number"):
        tells(text, "times")


def test_readme_numbers_stand_in_their_json():
    """The bound and the shares of words that the README's table states are those of results/demo_*.json, as rounded there."""
    for name in ("demo_posterior", "demo_mdlm"):
        result = json.loads((ROOT / "results" / f"{name}.json").read_text())
        row = next(line for line in README.splitlines() if f"results/{name}.json" in line and line.startswith("|"))
        assert f"{result['known_words']:.3f}" in row and f"{result['training']['validation']['roar'][0]:.3f}" in row


def pairs_in(found):
    """Every list of two floats in a json, as a page may round it."""
    if isinstance(found, list) and len(found) == 2 and all(isinstance(x, float) for x in found):
        for digits, scale in ((1, 1), (2, 1), (3, 1), (1, 100)):
            yield " ± ".join(f"{scale * x:.{digits}f}" for x in found).replace("-", "−")
    elif isinstance(found, (dict, list)):
        for x in found.values() if isinstance(found, dict) else found:
            yield from pairs_in(x)


SECTIONS = {"Evaluation": ("## Evaluation", "## Results"), "the claim": ("### The paper's claim", "### Speed")}


@pytest.mark.parametrize("page", [*RESULTS, *SECTIONS])
def test_values_with_errors_stand_in_the_jsons_that_are_named_beside_them(page):
    """Each in a json that this page, or section of README, names, or a page that it links to, as rounded there."""
    text = RESULTS[page] if page in RESULTS else README[slice(*map(README.index, SECTIONS[page]))]
    linked = {page for page in re.findall(r"\]\((?:results/)?(\w+)\.md", text) if page != "README"}
    names = set(re.findall(r"(\w+)\.json", text + "".join(RESULTS[page] for page in linked)))
    there = [path for path in (ROOT / "results").glob("*.json") if path.stem in names]
    known = {pair for path in there for pair in pairs_in(json.loads(path.read_text()))}
    stated = set(re.findall(r"−?\d+\.\d+ ± \d+\.\d+", text))
    assert (stated or page in ("measures", "speed")) and not stated - known


@pytest.mark.parametrize("name, text, head", [("claim", RESULTS["one_mdlm"], "path"), ("claim_float32", RESULTS["earlier"], "path"),
                                              ("claim_mdlms", RESULTS["claim"], "path"), ("claim_one_piece", RESULTS["one_piece"], "path"),
                                              ("claim_scratch", RESULTS["scratch"], "path"), ("claim_long", RESULTS["budgets"], "path"),
                                              ("claim_D128", RESULTS["sphere"], "path"), ("claim_D128", README, "sampler"),
                                              ("claim_D128_again", RESULTS["again"], "path"), ("claim_cool_again", RESULTS["cool"], "path"),
                                              ("claim_scratch_D128_again", RESULTS["scratch"], "path")])
def test_every_cell_of_the_claim_s_tables_is_that_cell_of_its_json(name, text, head):
    """All rows of the tables of the claim, of one MDLM, in float32, from scratch, of longer fine-tuning, of other seeds, and README's."""
    found, columns = claims(name)
    rows, *_ = rows_below(text, f"| model, {head} | {columns}")
    assert len(rows) > 5 and (text is README or len(rows) == len({key.rsplit("/", 1)[0] for key in found["cells"]} - {"ar/ar"}))
    for who, *values in rows:
        model, path = who.split(", `")
        curve = f"{'mdlm_more' if 'scratch' in name and model == 'MDLM' else MODELS[model]}/{path.split('`')[0]}"
        assert values == [value(found["cells"][f"{curve}/{T}"]["nll"]) for T in found["same_rule"]["remdm"]], who
        orders = {settings_at(found["tuning"][curve], int(T))[0].get("order", "") for T in found["same_rule"]["remdm"]}
        assert not path.startswith("recorded") or orders == {path.partition("`, ")[2]}, who


def test_duels_and_differences_of_the_claim_are_those_of_its_json():
    """The two tables of the same rule of one MDLM; and the targets, duel by duel, of that, the claim, from scratch and the longer one."""
    (found, columns), said = claims("claim"), RESULTS["one_mdlm"]
    steps = list(found["same_rule"]["remdm"])
    for of, rows in zip((found, found["controls"]["masked"]), rows_below(said, f"| rule of both | {columns}"), strict=True):
        assert {name.strip("`"): values for name, *values in rows} == {
            rule: [value(each[T]) for T in steps] for rule, each in of["same_rule"].items()}
    pages = said + "".join(RESULTS[page] for page in ("claim", "one_piece", "sphere", "again", "cool", "scratch", "budgets"))
    tables = list(rows_below(pages, "| DSL | against | calls | NLL | each seed better | 4-gram JS | MAUVE | of all texts |"))
    runs = ("claim", "claim_mdlms", "claim_one_piece", "claim_D128", "claim_D128_again", "claim_cool_again", "claim_scratch",
            "claim_scratch_D128_again", "claim_long")
    duels = [(claims(name)[0]["cells"], *pair) for name, rows in zip(runs, tables, strict=True)
             for pair in zip(claims(name)[0]["duels"], rows, strict=True)]
    for cells, duel, (at, against, calls, nll, every, js, mauve, of_all) in duels:
        (_, path, T), ours = duel["other"].split("/"), duel["ours"].rsplit("/", 1)[1]
        assert at == f"T = {ours}" and f"`{path}`" in against and against.endswith(f"T = {T}")
        assert calls == " : ".join(f"{x:.0f}" for x in duel["nfe"]) and every == {True: "yes", False: "no", None: "-"}[duel["every_seed"]]
        assert (nll, js, mauve) == (value(duel["nll"]), value(duel["js_4"], 3), value(duel["mauve"]))
        assert duel["num_samples"] == [1020, 1020]
        assert of_all == ", ".join(f"{cells[duel[who]]['mauve'][0]:.2f}" for who in ("ours", "other"))


def test_the_ratios_of_calls_stand_in_their_json():
    """Pooled and by seed, to MDLM continued and to the control, as far as 128 calls, beyond which there are few texts."""
    pages = "".join(RESULTS[page] for page in ("claim", "one_piece", "sphere", "again", "cool"))
    for name, rows in zip(("claim_mdlms", "claim_one_piece", "claim_D128", "claim_D128_again", "claim_cool_again"),
                          rows_below(pages, "| T | MDLM continued | the control |"), strict=True):
        found, _ = claims(name)
        assert len(rows) == 4
        for T, *values in rows:
            ratios = [of["against_best"]["at"][T] for of in (found, found["controls"]["masked"])]
            assert values == [f"{times(found, at['ratio'], T)} ({by_seed(found, at, T)})"
                              for at in ratios], (name, T)


def best(run, T="8"):
    """The ratios to the best samplers of MDLM and of the control."""
    return [of["against_best"]["at"][T] for of in (run, run["controls"]["masked"])]


def published(run, T="8"):
    """The same by the published sampler for both."""
    return [of["published_against_published"]["at"][T] for of in (run, run["controls"]["masked"])]


def spelt(run, at):
    return f"{times(run, at['ratio'])} ({by_seed(run, at)})"


def along(cells, curve, what, digits=2, steps=(4, 8, 16, 32, 64)):
    """What a curve has at each T, with its error where that is told."""
    return ", ".join(value(cells[f"{curve}/{T}"][what][: 4 - digits], digits) for T in steps)


def by_texts(cells):
    """Errors by texts alone: their median, how many are small, of how many, and the largest."""
    errors = sorted(c["text_stderr"] for c in cells)
    return f"{np.median(errors):.3f}, {sum(x < 0.015 for x in errors)}, {len(errors)}, 0.015, {errors[-1]:.3f}"


def test_the_runs_of_the_claim_agree_as_is_said():
    for name, heading in ("claim_first", "An independent run"), ("claim_few", "Without tuning on another machine"):
        first, second = (claims(name)[0]["cells"] for name in (name, "claim"))
        gaps = [abs(first[key]["nll"][0] - second[key]["nll"][0]) for key in first.keys() & second.keys() if not key.startswith("ar/")]
        assert tells(under(RESULTS["earlier"], heading), f"{len(gaps)}, {np.mean(gaps):.2f}")


RUNS = "claim_D128", "claim_D128_again", "claim_mdlms", "claim_one_piece", "claim_long", "claim_scratch", "claim_scratch_D128_again"


def test_the_ratios_of_the_readme_stand_in_their_jsons():
    """Of the first run with 128 dimensions, of those with 32, longer and from scratch."""
    large, _, small, one_piece, long, scratch, scratch_128 = [claims(name)[0] for name in RUNS]
    assert tells(row_of(README, "Embeddings of 32"), *(told_ratio(best(run)[0]) for run in (one_piece, small, large)))
    assert tells(row_of(README, "Fine-tuning four times"), *map(told_ratio, best(long)))
    assert tells(row_of(README, "From scratch"), *(spelt(run, best(run)[0]) for run in (scratch, scratch_128)),
                 ", ".join(f"{best(run)[1]['ratio']:.1f}" for run in (scratch, scratch_128)))


def test_what_the_published_sampler_gains_later_stands_in_the_jsons():
    """After longer training and from scratch: the ratios at T = 8 with their intervals, at 16 and 32 as far as the runs went."""
    def at(run, which, T):
        found = published(run, T)[which]
        return told_ratio(found, 2) if T == "8" else times(run, found["ratio"], T, ">" * (set(found["bounds"]) == {">"}))

    mdlm, control = ([[at(claims(name)[0], which, T) for T in ("8", "16", "32")] for name in RUNS[4:]] for which in (0, 1))
    said = []
    for of in mdlm, control:
        said += [*(each[0] for each in of), ", ".join(["32", *(each[2] for each in of)])]
    assert tells(row_of(README, "The same after 8,000"), *said)
    assert tells(under(RESULTS["README"], "The claim in short"), *(", ".join([first.split()[0], *more]) for first, *more in mdlm))


def test_the_ratios_of_the_summary_stand_in_their_jsons():
    """What `random` misses (a) by at T = 4, run by run; ratios without a spread order; what evidence and the loss bring from scratch."""
    runs, whole = [claims(name)[0] for name in RUNS], claims("claim")[0]
    short, unsure = (under(RESULTS["README"], heading) for heading in ("The claim in short", "How sure is that?"))
    assert tells(short, ", ".join(
               f"{run['cells']['dsl/random/4']['nll'][0] - run['cells']['mdlm_more/mend-recorded/16']['nll'][0]:.2f}" for run in runs))
    assert tells(unsure, f"{best(runs[2])[0]['ratio']:.1f}, 1.9")
    assert tells(unsure, *map(told_ratio, best(whole)))
    assert tells(short, *(told_ratio(of["published_against_published"], 2) for of in (whole, whole["controls"]["masked"])))
    mdlm, masked, dsl = (min(cell["nll"][0] for key, cell in runs[5]["cells"].items() if key.split("/")[::2] == [model, "8"])
                         for model in ("mdlm_more", "masked", "dsl"))
    assert tells(short, f"{masked - dsl:.2f}, {mdlm - masked:.2f}", told_ratio(best(runs[5])[1]),
                 ", ".join(f"{x:.1f}" for x in best(runs[5], "16")[1]["by_seed"]))


def test_the_times_of_the_runs_in_one_piece_stand_in_their_json():
    told = []
    for page, name in ("one_piece", "claim_one_piece"), ("again", "claim_D128_again"):
        ends = json.loads((ROOT / "results" / f"{name}_times.json").read_text())["ends"]
        (rows,) = rows_below(RESULTS[page], "| stage | minutes | in all |")
        begins = [0, *ends.values()]
        assert [row[1:] for row in rows] == [[f"{(end - begin) / 60:.0f}", f"{end / 60:.0f}"] for begin, end in zip(begins, ends.values())]
        told.append(f"{ends['calibration'] / 60:.0f}, {begins[-1] / 60:.0f}")
    assert tells(under(README, "The paper's claim"), *told)


def test_the_summary_s_table_stands_in_its_jsons():
    """Column by column: the duels and how many pairs of seeds have DSL below, calls, differences by one rule, mending, calibration."""
    titles, *_ = re.findall(r"^\| target, set beforehand \|.*\|$", RESULTS["README"], re.M)
    (rows,) = rows_below(RESULTS["README"], titles)
    columns = list(zip(*(values for _, *values in rows), strict=True))
    assert len(columns) == titles.count("|") - 2 > 2
    for *told, names in columns:
        name = re.fullmatch(r"`(\w+)\.json`", names)[1]
        found, asked = claims(name)[0], [json.loads((ROOT / "results" / f"{name}_{of}.json").read_text())["over_seeds"]
                                         for of in ("correction", "calibration")]
        both, said = (found, found["controls"]["masked"]), []
        for published in (False, True):
            duels = {d["ours"]: d for d in found["duels"] if ("/remdm/" in d["other"]) == published}
            for duel in (duels.get(f"dsl/mend/{T}") for T in (4, 8, 16, 32)):
                seeds = duel and zip(*(found["cells"][duel[who]]["nll_by_seed"] for who in ("ours", "other")))
                said.append(f"{value(duel['nll'])} ({sum(a < b for a, b in seeds)})" if duel else "-")
        for at in (of["against_best"]["at"]["8"] for of in both):
            said.append(f"{times(found, at['ratio'])} times ({by_seed(found, at)})")
        said += [value(of["same_rule"]["remdm"][T]) for T in ("8", "32") for of in both]
        random, own = ([next(v for key, v in of.items() if f"/{model}-" in key) for model in ("dsl", "mdlm_more", "masked")]
                       for of in asked)
        said += [value([100 * x for x in of[whose][how]["at_98"]["fixed"]], 1) for whose, how in (("random", "evidence"), ("own", "sweep"))
                 for of in random]
        assert told == [*said, *(value(of["own, masked"]["ece"], 3) for of in own)], name


@pytest.mark.parametrize("page, name", [("claim", "claim_mdlms"), ("sphere", "claim_D128"), ("again", "claim_D128_again")])
def test_mending_and_calibration_of_the_claim_stand_in_their_jsons(page, name):
    (rows,) = rows_below(RESULTS[page], re.search(r"^\| \| random, by lookup \|.*\|$", RESULTS[page], re.M)[0])
    mends, sure = (json.loads((ROOT / "results" / f"{name}_{of}.json").read_text())["over_seeds"]
                   for of in ("correction", "calibration"))
    assert len(rows) == 3
    for who, *values in rows:
        of, ece = (next(v for key, v in each.items() if f"/{MODELS[who]}-" in key) for each in (mends, sure))
        fixed = [of["random"][how]["at_98"]["fixed"] for how in ("lookup", "evidence", "sweep")] + [of["own"]["sweep"]["at_98"]["fixed"]]
        views = ("truth, masked", "own, masked", "own, masked beside evidence", "own, shown", "own, shown as evidence")
        assert values == [*(value([100 * x for x in pair], 1) for pair in fixed),
                          *(value(pair, 3) for pair in (of["random"]["evidence"]["auc"], of["random"]["sweep"]["auc"])),
                          *(value(ece[view]["ece"], 3) for view in views)], who


def test_what_more_texts_change_stands_in_the_jsons():
    """Errors by texts, what the cells differ by, ratios, and MAUVE, 2-grams and repetition, T = 4 or 8 to 64, of equally many texts."""
    (first, _), (found, _), said = claims("claim_one_piece"), claims("claim_more_texts"), under(RESULTS["one_piece"], "More texts")
    cells = {key: c for key, c in found["cells"].items() if not key.startswith("ar/")}
    before, now = ([of[key]["text_stderr"] for key in cells] for of in (first["cells"], cells))
    few, many = (sum(x < 0.015 for x in errors) for errors in (before, now))
    assert tells(said, f"{np.median(now):.3f}, {np.median(before):.3f}, {many}, {len(cells)}, 0.015, {few}, {max(now):.3f}")
    gaps = [abs(c["nll"][0] - first["cells"][key]["nll"][0]) for key, c in cells.items() if first["cells"][key]["num_samples"] < 1020]
    assert tells(said, f"{len(gaps)}, 384, {np.mean(gaps):.3f}, {max(gaps):.2f}",
                 *(told_ratio(at, seeds=by_seed(found, at)) for at in best(found)), told_ratio(published(found)[0], 2))
    assert tells(said, *(along(cells, curve, "mauve") for curve in ("mdlm_more/remdm", "dsl/remdm", "dsl/mend", "mdlm_more/mend-recorded")))
    assert tells(said, *(along(cells, curve, what, 3, (8, 16, 32, 64)) for what in ("js_2", "repetition")
                         for curve in ("dsl/mend", "mdlm_more/mend-recorded")))


def test_what_128_dimensions_change_stands_in_the_jsons():
    """Ratios and seeds, with more texts too, where errors by texts, MAUVE, 2-grams and repetition stand as well; and how much is mended."""
    found, more, before, small = (
        claims(name)[0] for name in ("claim_D128", "claim_D128_more_texts", "claim_one_piece", "claim_more_texts"))
    said, again, cells = under(RESULTS["sphere"]), under(RESULTS["sphere"], "More texts, once more"), more["cells"]
    assert tells(said, *map(told_ratio, best(found)))
    assert tells(said, told_ratio(published(found)[0], 2))
    assert tells(said, ", ".join(f"{x:.2f}" for of in (found, before) for x in of["cells"]["dsl/mend/8"]["nll_by_seed"]))
    assert tells(said, gain(*(of["cells"]["dsl/mend/8"]["nll_by_seed"] for of in (small, more))))
    assert tells(again, by_texts(c for key, c in cells.items() if not key.startswith("ar/")))
    assert tells(again, *(told_ratio(at, seeds=by_seed(more, at)) for at in best(more)), told_ratio(published(more)[0], 2),
                 ", ".join(value(duel["nll"]) for duel in more["duels"][:3]))
    assert tells(again, along(cells, "dsl/mend", "mauve"), along(cells, "dsl/remdm", "mauve"),
                 *(along(cells, "dsl/mend", what, 3, (8, 16, 32, 64)) for what in ("js_2", "repetition")))
    mends = json.loads((ROOT / "results" / "claim_D128_correction.json").read_text())["over_seeds"]
    dsl, mdlm = (next(v for key, v in mends.items() if f"/{model}-" in key)["random"]["evidence"]["at_98"]["fixed"]
                 for model in ("dsl", "mdlm_more"))
    assert f"mends {dsl[0] / mdlm[0]:.1f} times" in said
    assert tells(row_of(README, "Does it correct"), f"{dsl[0] / mdlm[0]:.1f}", *(value([100 * x for x in of], 1) for of in (dsl, mdlm)))


def of_six(ratios):
    middle, half = claim.difference(np.log([x for at in ratios for x in at["by_seed"]]), np.zeros(6), paired=True)
    return {"ratio": math.exp(middle), "student": [math.exp(middle - half), math.exp(middle + half)]}


def margins(runs, T, of_remdm=False):
    """What `mend` has less of than MDLM's best, or its published sampler, in a duel at T, over the seeds of all runs."""
    duels = [next(d for d in run["duels"] if d["ours"] == f"dsl/mend/{T}" and ("/remdm/" in d["other"]) == of_remdm) for run in runs]
    return gain(*([x for run, d in zip(runs, duels) for x in run["cells"][d[who]]["nll_by_seed"]] for who in ("ours", "other")))


def test_what_six_pairs_of_seeds_say_stands_in_the_jsons():
    """Ratios of the three other seeds, in README too; and of all six, with their margins at T = 4 to 32, by Student's t."""
    runs, said = [claims(name)[0] for name in RUNS[:2]], under(RESULTS["again"])
    fresh, six = best(runs[1]), [of_six(of) for of in zip(*map(best, runs))]
    rules, control = zip(*([of_six(of) for of in zip(*(published(run, T) for run in runs))] for T in ("8", "16", "32")))
    assert tells(said, *(told_ratio(at, seeds=by_seed(runs[1], at)) for at in fresh), *map(told_ratio, six))
    assert tells(said, told_ratio(rules[0], 2), told_ratio(control[0], 2))
    each = [margins(runs, T, of_remdm) for of_remdm in (False, True) for T in (4, 8, 16, 32)]
    assert tells(said, *each)
    drafts = [np.mean([x for run in runs for x in run["cells"][key]["nll_by_seed"]]) for key in ("dsl/mend/4", "mdlm_more/random/4")]
    assert tells(row_of(README, "The best sampler of each"), told_ratio(fresh[0]), told_ratio(six[0]), f"4, {drafts[0] - drafts[1]:.2f}")
    assert tells(row_of(README, "Is it the Gaussian evidence"), told_ratio(fresh[1]), told_ratio(six[1]))
    assert tells(row_of(README, "The same published sampler"), told_ratio(rules[0], 2), *(told_ratio(at, 2) for at in control))
    assert tells(under(RESULTS["README"], "The claim in short"), told_ratio(rules[0], 2), told_ratio(control[0], 2))
    assert tells(under(README, "The paper's claim"), *(f"{margin}, {T}" for margin, T in zip(each, (4, 8, 16, 32))),
                 ", ".join(value(duel["nll"]) for duel in runs[1]["duels"][:4]))


def test_what_128_dimensions_do_from_scratch_stands_in_the_jsons():
    """Margins of six pairs, ratios, `mend` seed by seed, and what evidence and the loss bring, from best sampler to best sampler."""
    runs, said = [claims(name)[0] for name in RUNS[5:]], under(RESULTS["scratch"], "With 128 dimensions")
    each = [margins(runs, T) for T in (4, 8, 16)]
    assert tells(said, *each)
    short = under(RESULTS["README"], "The claim in short")
    assert tells(short, *each[1:])
    by_rule = [[[x for run in runs for x in run["cells"][f"{model}/remdm/{T}"]["nll_by_seed"]] for T in (8, 16, 32)]
               for model in ("mdlm_more", "masked", "dsl")]
    assert tells(short, *(gain(a, b) for other in by_rule[:2] for a, b in zip(other, by_rule[2], strict=True)))
    assert tells(said, ", ".join(f"{x:.2f}" for run in reversed(runs) for x in run["cells"]["dsl/mend/8"]["nll_by_seed"]))
    (mdlm, control), (rule, control_rule) = best(runs[1]), published(runs[1])
    assert tells(said, spelt(runs[1], mdlm), told_ratio(control, seeds=by_seed(runs[1], control)))
    assert tells(said, told_ratio(rule, ends=2), told_ratio(control_rule, 2))
    lowest = np.array([[min(cell["nll"][0] for key, cell in runs[1]["cells"].items() if re.fullmatch(f"{model}/.*/{T}", key))
                        for T in (4, 8, 16)] for model in ("mdlm_more", "masked", "dsl")])
    assert tells(said, ", ".join(f"{x:.2f}" for x in (lowest[:2] - lowest[1:]).ravel()))


def test_the_errors_by_texts_alone_are_as_said():
    cells = claims("claim")[0]["cells"]
    assert tells(under(RESULTS["one_mdlm"], "Every cell"), by_texts(c for key, c in cells.items() if int(key.rsplit("/", 1)[1]) <= 64))


def test_speeds_stand_in_their_json():
    """In both tables of speeds columns 2 and 3 are numbers of the row's json, as rounded there, and column 4 is their ratio."""
    shown = {"ms": lambda s: f"{1000 * s:,.0f}", "s": lambda s: f"{s:.1f}", "GiB": lambda gib: f"{gib:.2f}"}
    for text in (README, RESULTS["speed"]):
        rows = re.findall(r"^\|.*bench_\w+\.json` \|$", text, re.M)
        assert len(rows) > 8
        for row in rows:
            _, _, ours, other, ratio, _, name, _ = row.split("|")
            (ours, unit), (other, same) = ours.split(), other.split()
            result = json.loads((ROOT / "results" / re.search(r"bench_\w+\.json", name)[0]).read_text())
            known = result["memory_gib"].values() if unit == "GiB" else [t["median_s"] for t in result["times"].values()]
            assert unit == same and {ours, other} <= set(map(shown[unit], known)), row
            quotient = float(ours.replace(",", "")) / float(other.replace(",", ""))
            assert min(abs(quotient / float(ratio) - 1), abs(1 / quotient / float(ratio) - 1)) < 0.03, row
