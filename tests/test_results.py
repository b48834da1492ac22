"""The tables of README.md and results/*.md, and some of their sentences, tell the numbers of their jsons; any other value with an error
occurs in one of them."""

import itertools
import json
import math
import re

import numpy as np
import pytest

import claim
from pages import MODELS, README, RESULTS, ROOT, by_seed, claims, gain, rows_below, times, value
from reproduce_config import settings_at


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


def test_the_runs_of_the_claim_agree_as_is_said():
    for name, told in ("claim_first", "their {} cells in common differ by"), ("claim_few", "The {} cells that both runs have differ by"):
        first, second = (json.loads((ROOT / "results" / f"{name}.json").read_text())["cells"] for name in (name, "claim"))
        gaps = [abs(first[key]["nll"][0] - second[key]["nll"][0]) for key in first.keys() & second.keys() if not key.startswith("ar/")]
        assert f"{told.format(len(gaps))} {sum(gaps) / len(gaps):.2f} on average" in RESULTS["earlier"]


def test_the_ratios_of_the_readme_and_of_the_summary_stand_in_their_json():
    """README's of the first run with 128 dimensions, of those with 32, longer and from scratch; the summary's without a spread order, also
    by the published rule, what `random` misses (a) by at T = 4, run by run, and what evidence and the loss bring from scratch at T = 8."""
    names = "claim_D128", "claim_D128_again", "claim_mdlms", "claim_one_piece", "claim_long", "claim_scratch", "claim_scratch_D128_again"
    runs, whole, summary = [claims(name)[0] for name in names], claims("claim")[0], RESULTS["README"]

    def told(form, of, digits=1):
        return form.format(*(f"{x:.{digits}f}" for x in (of.get("ratio", of.get("geometric_mean")), *of.get("student", of["interval"]))))

    def best(run, T="8"):
        return [of["against_best"]["at"][T] for of in (run, run["controls"]["masked"])]

    (first, _), _, (small, _), (one_piece, _), long, scratch, scratch_128 = map(best, runs)
    said = [told("with 128 [{} times](results/sphere.md) ({} to {}), but", first),
            told("[{} times](results/one_piece.md) ({} to {}) and", one_piece),
            told("[{} times](results/claim.md#an-mdlm-for-each-seed) ({} to {});", small),
            told("{} times ({} to {}), the", long[0]), told("control {} ({} to {}): MDLM gains", long[1]),
            *(f"{times(run, of[0]['ratio'])}{form}{by_seed(run, of[0])}" for run, of, form in (
                (runs[5], scratch, " times (by seed "), (runs[6], scratch_128, " ("))),
            "but the control {:.1f} and {:.1f}".format(*(of[1]["ratio"] for of in (scratch, scratch_128)))]
    same = [[of["published_against_published"]["at"] for of in (run, run["controls"]["masked"])] for run in runs[4:]]
    later, control = ([told("{} ({} to {})", at["8"], 2) for at in of] for of in zip(*same))
    later_16, control_16 = ([f"{at['16']['ratio']:.1f}" for at in of] for of in zip(*same))
    said.append("dimensions) {}, from scratch {} and, with 128 (other seeds), {},".format(*later).replace(" (0.89", " times (0.89"))
    said.append("for DSL's 16 {}, {} and {}; the control then {}, {} and {}, for 16 {}, {} and {}:".format(
        *later_16, *control, *control_16))
    assert not [words for words in said if words not in README], said

    short = [f"{run['cells']['dsl/random/4']['nll'][0] - run['cells']['mdlm_more/mend-recorded/16']['nll'][0]:.2f}" for run in runs]
    soft, soft_control = best(whole)
    rule, rule_control = (of["published_against_published"] for of in (whole, whole["controls"]["masked"]))
    mdlm, masked, dsl = (min(row["nll"][0] for key, row in runs[5]["cells"].items() if key.split("/")[::2] == [model, "8"])
                         for model in ("mdlm_more", "masked", "dsl"))
    said = [f"misses by {', '.join(short[:-1])} and {short[-1]})", f"made {small['ratio']:.1f} of 1.9",
            told("the ratio was {} without a spread order ({} to {};", soft), told("to the control {}, {} to {})", soft_control),
            told("the ratio is {} there (95%: {} to {})", rule, 2), told("to the control {} ({} to {})", rule_control, 2),
            told("the control needs {} times as many ({} to {})", scratch[1]),
            f"evidence is worth {masked - dsl:.2f} nats, the loss {mdlm - masked:.2f}",
            f"eight times (by seed {', '.join(f'{x:.1f}' for x in best(runs[5], '16')[1]['by_seed'])})"]
    assert not [words for words in said if words not in summary], said
    assert [by_seed(runs[0], best(runs[0], T)[0], T) for T in ("16", "32")] == ["> 8, > 8, > 8", "> 4, > 4, > 4"]  # not with 128 calls


def test_the_times_of_the_runs_in_one_piece_stand_in_their_json():
    for page, name, told in (("one_piece", "claim_one_piece", "took {:.0f} minutes"), ("again", "claim_D128_again", "took {:.0f}")):
        ends = json.loads((ROOT / "results" / f"{name}_times.json").read_text())["ends"]
        (rows,) = rows_below(RESULTS[page], "| stage | minutes | in all |")
        begins = [0, *ends.values()]
        assert [row[1:] for row in rows] == [[f"{(end - begin) / 60:.0f}", f"{end / 60:.0f}"] for begin, end in zip(begins, ends.values())]
        assert not [words for words in (told.format(ends["calibration"] / 60), f"and {begins[-1] / 60:.0f} in all") if words not in README]


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
    (first, _), (found, _), said = claims("claim_one_piece"), claims("claim_more_texts"), RESULTS["one_piece"].split("## More texts")[1]
    cells = {key: c for key, c in found["cells"].items() if not key.startswith("ar/")}
    before, now = ([of[key]["text_stderr"] for key in cells] for of in (first["cells"], cells))
    few, many = (sum(x < 0.015 for x in errors) for errors in (before, now))
    assert f"median of {np.median(now):.3f}, where it was {np.median(before):.3f}; {many} of {len(cells)} cells are below 0.015" in said
    assert f"where {few} were, and none is above {max(now):.3f}" in said
    gaps = [abs(c["nll"][0] - first["cells"][key]["nll"][0]) for key, c in cells.items() if first["cells"][key]["num_samples"] < 1020]
    assert f"the {len(gaps)} cells that had 384 texts differ by {np.mean(gaps):.3f} on average, by {max(gaps):.2f} at most" in said
    for of, form in ((found, "{:.1f} times as many ({}; 95% by Student's t {:.1f} to {:.1f})"),
                     (found["controls"]["masked"], "of the control {:.1f} ({}; {:.1f} to {:.1f})")):
        at = of["against_best"]["at"]["8"]
        assert form.format(at["ratio"], ", ".join(f"{x:.1f}" for x in at["by_seed"]), *at["student"]) in said
    rule = found["published_against_published"]["at"]["8"]
    assert "the ratio is {:.2f} ({:.2f} to {:.2f})".format(rule["ratio"], *rule["student"]) in said

    def row(curve, what, digits, steps=(8, 16, 32, 64)):
        values = [value(cells[f"{curve}/{T}"][what], digits) for T in steps]
        return f"{', '.join(values[:-1])} and {values[-1]}"

    for curve in ("mdlm_more/remdm", "dsl/remdm", "dsl/mend", "mdlm_more/mend-recorded"):
        assert row(curve, "mauve", 2, (4, 8, 16, 32, 64)) in said, curve
    for curve in ("dsl/mend", "mdlm_more/mend-recorded"):
        for what in ("js_2", "repetition"):
            assert re.sub(r" ± [\d.]+", "", row(curve, what, 3)) in said, (curve, what)


def test_what_128_dimensions_change_stands_in_the_jsons():
    """Ratios and seeds, with more texts too, where errors by texts, MAUVE, 2-grams and repetition stand as well; and how much is mended."""
    (found, _), (more, _), (before, _), said = *map(claims, ("claim_D128", "claim_D128_more_texts", "claim_one_piece")), RESULTS["sphere"]
    cells, errors = more["cells"], [c["text_stderr"] for key, c in more["cells"].items() if not key.startswith("ar/")]
    told = [f"a median of {np.median(errors):.3f}, {sum(x < 0.015 for x in errors)} of {len(errors)} cells are below 0.015, none is above "
            f"{max(errors):.3f}"]
    for run, seeds, forms in (
            (found, 0, ("{} times fewer than the best of MDLM continued (95% by Student's t {} to {})",
                        "{} times fewer than that of the control ({} to {})")),
            (more, 3, ("needs {} times as many ({}, {}, {}; {} to {})", "that of the control {} ({}, {}, {}; {} to {})"))):
        for of, form in zip((run, run["controls"]["masked"]), forms):
            at = of["against_best"]["at"]["8"]
            told.append(form.format(*(f"{x:.1f}" for x in (at["ratio"], *at["by_seed"][:seeds], *at["student"]))))
    for of, form in ((found, "{} times at T = 8 ({} to {})"), (more, "ratio is {} ({} to {})")):
        at = of["published_against_published"]["at"]["8"]
        told.append(form.format(*(f"{x:.2f}" for x in (at["ratio"], *at["student"]))))
    ours, theirs = ([f"{x:.2f}" for x in of["cells"]["dsl/mend/8"]["nll_by_seed"]] for of in (found, before))
    told.append("{}, {} and {}, with 32 dimensions {}, {} and {};".format(*ours, *theirs))
    small, large = (of["cells"]["dsl/mend/8"]["nll_by_seed"] for of in (claims("claim_more_texts")[0], more))
    told.append(f"`mend` is better by {gain(small, large).replace(' (', ' at T = 8 (95% ')}, in each pair")
    told.append("is at {}, {} and {}".format(*(value(duel["nll"]) for duel in more["duels"][:3])))
    for curve, what, digits, steps in (("dsl/mend", "mauve", 2, (4, 8, 16, 32, 64)), ("dsl/remdm", "mauve", 2, (4, 8, 16, 32, 64)),
                                       ("dsl/mend", "js_2", 3, (8, 16, 32, 64)), ("dsl/mend", "repetition", 3, (8, 16, 32, 64))):
        *values, last = (value(cells[f"{curve}/{T}"][what], digits) for T in steps)
        told.append(re.sub(r" ± [\d.]+" if digits == 3 else "^$", "", f"{', '.join(values)} and {last}"))
    mends = json.loads((ROOT / "results" / "claim_D128_correction.json").read_text())["over_seeds"]
    dsl, mdlm = (next(v for key, v in mends.items() if f"/{model}-" in key)["random"]["evidence"]["at_98"]["fixed"][0]
                 for model in ("dsl", "mdlm_more"))
    assert not [words for words in [*told, f"So DSL mends {dsl / mdlm:.1f} times as many"] if words not in said]
    assert f"DSL mends {dsl / mdlm:.1f} times as many random errors as MDLM continued" in README


def test_what_six_pairs_of_seeds_say_stands_in_the_jsons():
    """Ratios of the three other seeds, in README too; and of all six, with their margins at T = 4 to 32, by Student's t."""
    runs, told, headline = [claims(name)[0] for name in ("claim_D128", "claim_D128_again")], [], []

    def of_six(ratios, digits):
        middle, half = claim.difference(np.log([x for at in ratios for x in at["by_seed"]]), np.zeros(6), paired=True)
        return [f"{math.exp(x):.{digits}f}" for x in (middle, middle - half, middle + half)]

    def both(of, form, of_all, fresh, first):
        best, rule = ([run[which]["at"]["8"] for run in of] for which in ("against_best", "published_against_published"))
        told.append(form.format(*(f"{x:.1f}" for x in (best[1]["ratio"], *best[1]["by_seed"], *best[1]["student"]))))
        told.extend([of_all.format(*of_six(best, 1)), "{} ({} to {})".format(*of_six(rule, 2))])
        headline.extend([fresh.format(*(f"{x:.1f}" for x in (best[1]["ratio"], *best[1]["student"]))), first.format(*of_six(best, 1))])

    both(runs, "needs {} times as many ({}, {}, {} by seed; 95% by Student's t {} to {})", "have {} (95%: {} to {}) and",
         "**{} times ({} to {})**, three seeds", "with all six {} times ({} to {}). With 16")
    both([run["controls"]["masked"] for run in runs], "that of the control {} ({}, {}, {}; {} to {})", "to the control, {} ({} to {})",
         "evidence: the control needs {} times ({} to {}), with", "with all six {} times ({} to {}). Given")
    for of_remdm, T in itertools.product((False, True), (4, 8, 16, 32)):
        duels = [next(d for d in run["duels"] if d["ours"] == f"dsl/mend/{T}" and ("/remdm/" in d["other"]) == of_remdm) for run in runs]
        told.append(gain(*([x for run, d in zip(runs, duels) for x in run["cells"][d[who]]["nll_by_seed"]] for who in ("ours", "other"))))
    rule = of_six([run["published_against_published"]["at"]["8"] for run in runs], 2)
    headline.append("needs {} times as many calls ({} to {}, six MDLMs)".format(*rule))
    headline.append("{} at T = 4, {} at 8, {} at 16 and {} at 32".format(*told[-8:-4]))
    drafts = [np.mean([x for run in runs for x in run["cells"][key]["nll_by_seed"]]) for key in ("dsl/mend/4", "mdlm_more/random/4")]
    headline.append(f"with 4 it is {drafts[0] - drafts[1]:.2f} nats behind MDLM's `random`")
    assert by_seed(runs[1], runs[1]["against_best"]["at"]["16"], 16) == "> 8, > 8, > 8"  # not reached with 128 calls
    assert not [words for words in told if words not in RESULTS["again"]] + [words for words in headline if words not in README]


def test_what_128_dimensions_do_from_scratch_stands_in_the_jsons():
    """Margins of six pairs, ratios, `mend` seed by seed, and what evidence and the loss bring, from best sampler to best sampler."""
    runs, said = [claims(name)[0] for name in ("claim_scratch", "claim_scratch_D128_again")], RESULTS["scratch"].split("## With 128")[1]
    told, small, large = [], *([f"{x:.2f}" for x in run["cells"]["dsl/mend/8"]["nll_by_seed"]] for run in runs)
    for T in (4, 8, 16):
        duels = [next(d for d in run["duels"] if d["ours"] == f"dsl/mend/{T}" and "/remdm/" not in d["other"]) for run in runs]
        told.append(gain(*([x for run, d in zip(runs, duels) for x in run["cells"][d[who]]["nll_by_seed"]] for who in ("ours", "other"))))
    told.append("at {}, {} and {} at T = 8, where with 32 it was {}, {} and {},".format(*large, *small))
    (best, rule), (control, control_rule) = ([of[which]["at"]["8"] for which in ("against_best", "published_against_published")]
                                             for of in (runs[1], runs[1]["controls"]["masked"]))
    told.append("{} times DSL's 8 (by seed {}:".format(times(runs[1], best["ratio"]), by_seed(runs[1], best)))
    told.append("{:.1f} times ({:.1f}, {:.1f}, {:.1f}; Student's t {:.1f} to {:.1f})".format(
        control["ratio"], *control["by_seed"], *control["student"]))
    told.append("{:.1f} times fewer calls than MDLM at T = 8 ({:.2f} to {:.2f})".format(rule["ratio"], *rule["student"]))
    told.append("{:.2f} of the control's ({:.2f} to {:.2f})".format(control_rule["ratio"], *control_rule["student"]))
    lowest = [[min(row["nll"][0] for key, row in runs[1]["cells"].items() if re.fullmatch(f"{model}/.*/{T}", key))
               for model in ("mdlm_more", "masked", "dsl")] for T in (4, 8, 16)]
    for form, i in ("loss brings {}, {} and {} at T", 0), ("evidence {}, {} and {}", 1):
        told.append(form.format(*(f"{values[i] - values[i + 1]:.2f}".replace("-", "−") for values in lowest)))
    assert not [words for words in told if words not in said] + [words for words in told[1:3] if words not in RESULTS["README"]]


def test_the_errors_by_texts_alone_are_as_said():
    cells = json.loads((ROOT / "results" / "claim.json").read_text())["cells"]
    errors = sorted(c["text_stderr"] for key, c in cells.items() if int(key.rsplit("/", 1)[1]) <= 64)
    small = sum(error < 0.015 for error in errors)
    said = f"a median of {errors[len(errors) // 2]:.3f} up to T = 64, where {small} of {len(errors)} cells are below 0.015 and none above"
    assert f"{said} {errors[-1]:.3f}" in RESULTS["one_mdlm"]


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
