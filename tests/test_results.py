"""The tables of README.md and results/*.md, and some of their sentences, tell the numbers of their jsons; any other value with an error
occurs in one of them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import claim
from reproduce_config import settings_at

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = {path.stem: path.read_text() for path in sorted((ROOT / "results").glob("*.md"))}


def test_readme_numbers_stand_in_their_json():
    """The bound and the shares of words that the README's table states are those of results/demo_*.json, as rounded there."""
    for name in ("demo_posterior", "demo_mdlm"):
        result = json.loads((ROOT / "results" / f"{name}.json").read_text())
        row = next(line for line in README.splitlines() if f"results/{name}.json" in line and line.startswith("|"))
        assert f"{result['known_words']:.3f}" in row and f"{result['training']['validation']['roar'][0]:.3f}" in row


def test_numbers_of_the_evaluation_stand_in_their_json():
    """Every value with its error in results/*.md, README's evaluation and README's claim is one of the jsons', as rounded there."""
    known = set()

    def collect(value):
        if isinstance(value, dict):
            for x in value.values():
                collect(x)
        elif isinstance(value, list) and len(value) == 2 and all(isinstance(x, float) for x in value):
            for digits, scale in ((1, 1), (2, 1), (3, 1), (1, 100)):
                known.add(" ± ".join(f"{scale * x:.{digits}f}" for x in value).replace("-", "−"))
        elif isinstance(value, list):
            for x in value:
                collect(x)

    for path in (ROOT / "results").glob("*.json"):
        collect(json.loads(path.read_text()))
    sections = ("## Evaluation", "## Results"), ("### The paper", "### What")
    parts = [README[README.index(first) : README.index(last)] for first, last in sections]
    stated = re.findall(r"−?\d+\.\d+ ± \d+\.\d+", "".join([*parts, *RESULTS.values()]))
    assert len(stated) > 50 and not set(stated) - known


MODELS = {"MDLM": "mdlm", "MDLM continued": "mdlm_more", "control": "masked", "the control": "masked", "DSL": "dsl"}


def value(pair, digits=2):
    return "-" if pair[0] is None else " ± ".join(f"{x:.{digits}f}" for x in pair if x is not None).replace("-", "−")


def times(ratio, T=8):
    """How many times T calls, as far as 128, beyond which there are few texts."""
    return f"{ratio:.1f}" if ratio <= 128 / int(T) else f"> {128 // int(T)}"


def gain(a, b):
    """How much lower b is than a, pair by pair, with the 95% interval by Student's t."""
    middle, half = claim.difference(a, b, paired=True)
    return f"{middle:.2f} ({middle - half:.2f} to {middle + half:.2f})".replace("-", "−")


def rows_below(text, header):
    """The cells of a Markdown table's rows, below each `header` in the text."""
    for table in text.split(header + "\n")[1:]:
        yield [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n\n")[0].splitlines()[1:]]


def claims(name):
    """A claim's json, and the head of the columns of its tables."""
    found = json.loads((ROOT / "results" / f"{name}.json").read_text())
    return found, f"T = {' | '.join(found['same_rule']['remdm'])} |"


@pytest.mark.parametrize("name, text, head", [("claim", RESULTS["one_mdlm"], "path"), ("claim_float32", RESULTS["earlier"], "path"),
                                              ("claim_mdlms", RESULTS["claim"], "path"), ("claim_one_piece", RESULTS["one_piece"], "path"),
                                              ("claim_scratch", RESULTS["scratch"], "path"), ("claim_long", RESULTS["budgets"], "path"),
                                              ("claim_mdlms", README, "sampler")])
def test_every_cell_of_the_claim_s_tables_is_that_cell_of_its_json(name, text, head):
    """All rows of the tables of the claim, of one MDLM, in float32, from scratch, of longer fine-tuning, and README's."""
    found, columns = claims(name)
    rows, *_ = rows_below(text, f"| model, {head} | {columns}")
    assert len(rows) > 5 and (text is README or len(rows) == len({key.rsplit("/", 1)[0] for key in found["cells"]} - {"ar/ar"}))
    for who, *values in rows:
        model, path = who.split(", `")
        curve = f"{'mdlm_more' if (name, model) == ('claim_scratch', 'MDLM') else MODELS[model]}/{path.split('`')[0]}"
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
    pages = said + RESULTS["claim"] + RESULTS["one_piece"] + RESULTS["scratch"] + RESULTS["budgets"]
    tables = list(rows_below(pages, "| DSL | against | calls | NLL | each seed better | 4-gram JS | MAUVE | of all texts |"))
    runs = ("claim", "claim_mdlms", "claim_one_piece", "claim_scratch", "claim_long")
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
    for name, rows in zip(("claim_mdlms", "claim_one_piece"),
                          rows_below(RESULTS["claim"] + RESULTS["one_piece"], "| T | MDLM continued | the control |"), strict=True):
        found, _ = claims(name)
        assert len(rows) == 4
        for T, *values in rows:
            ratios = [of["against_best"]["at"][T] for of in (found, found["controls"]["masked"])]
            assert values == [f"{times(at['ratio'], T)} ({', '.join(times(x, T) for x in at['by_seed'])})" for at in ratios], (name, T)


def test_the_runs_of_the_claim_agree_as_is_said():
    for name, told in ("claim_first", "their {} cells in common differ by"), ("claim_few", "The {} cells that both runs have differ by"):
        first, second = (json.loads((ROOT / "results" / f"{name}.json").read_text())["cells"] for name in (name, "claim"))
        gaps = [abs(first[key]["nll"][0] - second[key]["nll"][0]) for key in first.keys() & second.keys() if not key.startswith("ar/")]
        assert f"{told.format(len(gaps))} {sum(gaps) / len(gaps):.2f} on average" in RESULTS["earlier"]


def test_the_readme_s_ratios_stand_in_their_json():
    """Those of its bold sentence, by seed too, of the run without a spread order, of the published rule, and from
    scratch, where it says what evidence and what the loss brings at T = 8 as well: from best sampler to best sampler."""
    (found, _), (whole, _), (scratch, _) = map(claims, ("claim_mdlms", "claim", "claim_scratch"))

    def told(form, of, digits=1):
        return form.format(*(f"{x:.{digits}f}" for x in (of.get("ratio", of.get("geometric_mean")), *of.get("student", of["interval"]))))

    runs = (found, whole, claims("claim_one_piece")[0])
    ours, control, soft, soft_control, again, again_control = (
        of["against_best"]["at"]["8"] for run in runs for of in (run, run["controls"]["masked"]))
    (early, late), (early_control, late_control) = ([of["against_best"]["at"][T]["by_seed"] for T in ("16", "32")]
                                                    for of in (found, found["controls"]["masked"]))
    rule, rule_control = (of["published_against_published"] for of in (whole, whole["controls"]["masked"]))
    short, short_scratch = (of["cells"]["dsl/random/4"]["nll"][0] - of["cells"]["mdlm_more/mend-recorded/16"]["nll"][0]
                            for of in (found, scratch))
    said = [told("needs {} times as many (95%: {} to {})", ours), told("evidence {} times ({} to {})", control),
            f"({short:.2f} with `random`", f"({short_scratch:.2f} with `random`)", f"made {ours['ratio']:.1f} of 1.9",
            f"more than 8, more than 8 and {early[2]:.1f} times (the control {early_control[0]:.1f}, more than 8, {early_control[2]:.1f})",
            f"for 32 more than 4 times by each ({late_control[0]:.1f}, more than 4, {late_control[2]:.1f})",
            told("[says](results/one_piece.md) {} ({} to {}) with 8 calls", again),
            told("and to the control {} ({} to {}).**", again_control),
            told("ratio {} ({} to {})", soft), told("to the control {} ({} to {})", soft_control),
            told("ratio {} (95%: {} to {})", rule, 2), told("to the control {} ({} to {})", rule_control, 2)]
    at = scratch["controls"]["masked"]["against_best"]["at"]
    mdlm, masked, dsl = (min(row["nll"][0] for key, row in scratch["cells"].items() if re.fullmatch(f"{model}/.*/8", key))
                         for model in ("mdlm_more", "masked", "dsl"))
    said += [told("the control needs {} times as many ({} to {})", at["8"]), f"worth {masked - dsl:.2f} nats at T = 8, the loss "
             f"{mdlm - masked:.2f}", f"eight times (by seed {', '.join(f'{x:.1f}' for x in at['16']['by_seed'])})"]
    assert not [words for words in said if words not in README]
    assert min(early[0], early[1], early_control[1]) > 8 and min(*late, late_control[1]) > 4


def test_the_readme_s_table_of_trainings_stands_in_their_json():
    """The ratios at T = 8, pooled and by seed, DSL's margins over MDLM's best with four times the calls, and the errors mended."""
    (rows,) = rows_below(README, "| | calls, MDLM | the control | NLL, T = 8 | 16 | 32 | mends, % | MDLM, % |")
    assert len(rows) == 4
    for training, *values in rows:
        name = re.search(r"`results/(\w+)\.json`", training)[1]
        found, mends = claims(name)[0], json.loads((ROOT / "results" / f"{name}_correction.json").read_text())["over_seeds"]
        ratios = [of["against_best"]["at"]["8"] for of in (found, found["controls"]["masked"])]
        margins = {duel["ours"].rsplit("/", 1)[1]: value(duel["nll"]) for duel in found["duels"] if "/remdm/" not in duel["other"]}
        fixed = [next(v for key, v in mends.items() if f"/{model}-" in key)["random"]["evidence"]["at_98"]["fixed"]
                 for model in ("dsl", "mdlm_more")]
        assert values == [*(f"{times(at['ratio'])} ({', '.join(map(times, at['by_seed']))})" for at in ratios),
                          *(margins.get(T, "-") for T in ("8", "16", "32")), *(value([100 * x for x in pair], 1) for pair in fixed)], name


def test_the_times_of_the_run_in_one_piece_stand_in_their_json():
    ends = json.loads((ROOT / "results" / "claim_one_piece_times.json").read_text())["ends"]
    (rows,) = rows_below(RESULTS["one_piece"], "| stage | minutes | in all |")
    begins = [0, *ends.values()]
    assert [row[1:] for row in rows] == [[f"{(end - begin) / 60:.0f}", f"{end / 60:.0f}"] for begin, end in zip(begins, ends.values())]
    assert f"takes {ends['calibration'] / 60:.0f} minutes" in README and f"and {begins[-1] / 60:.0f} in all" in README


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
            said.append(f"{times(at['ratio'])} times ({', '.join(map(times, at['by_seed']))})")
        said += [value(of["same_rule"]["remdm"][T]) for T in ("8", "32") for of in both]
        random, own = ([next(v for key, v in of.items() if f"/{model}-" in key) for model in ("dsl", "mdlm_more", "masked")]
                       for of in asked)
        said += [value([100 * x for x in of[whose][how]["at_98"]["fixed"]], 1) for whose, how in (("random", "evidence"), ("own", "sweep"))
                 for of in random]
        assert told == [*said, *(value(of["own, masked"]["ece"], 3) for of in own)], name


def test_mending_and_calibration_of_the_claim_stand_in_their_jsons():
    (rows,) = rows_below(RESULTS["claim"], re.search(r"^\| \| random, by lookup \|.*\|$", RESULTS["claim"], re.M)[0])
    mends, sure = (json.loads((ROOT / "results" / f"claim_mdlms_{of}.json").read_text())["over_seeds"]
                   for of in ("correction", "calibration"))
    assert len(rows) == 3
    for who, *values in rows:
        of, ece = (next(v for key, v in each.items() if f"/{MODELS[who]}-" in key) for each in (mends, sure))
        fixed = [of["random"][how]["at_98"]["fixed"] for how in ("lookup", "evidence", "sweep")] + [of["own"]["sweep"]["at_98"]["fixed"]]
        views = ("truth, masked", "own, masked", "own, masked beside evidence", "own, shown", "own, shown as evidence")
        assert values == [*(value([100 * x for x in pair], 1) for pair in fixed),
                          *(value(pair, 3) for pair in (of["random"]["evidence"]["auc"], of["random"]["sweep"]["auc"])),
                          *(value(ece[view]["ece"], 3) for view in views)], who


def test_start_or_rate_stands_in_its_json():
    (rows,) = rows_below(RESULTS["budgets"], "| | bound, bits per byte | T = 4 | 8 | 16 | 32 | errors mended, % |")
    found = json.loads((ROOT / "results" / "start.json").read_text())["variants"]
    for name, (_, *values) in zip(("dsl_long_each", "dsl_long_each_slow"), rows, strict=True):
        of, trained = found[name]["nll_by_seed"], found[name]["trained"].values()
        assert values == [", ".join(f"{each['roar'][0]:.3f}" for each in trained),
                          *(", ".join(f"{x:.2f}" for x in of[f"mend/{T}"]) for T in (4, 8, 16, 32)),
                          ", ".join(f"{100 * each['fixed_at_98'][0]:.1f}" for each in trained)], name


def test_the_ablations_with_three_seeds_stand_in_their_jsons():
    (rows,) = rows_below(RESULTS["ablations"], "| | `posterior`, T = 16, by seed | errors mended, % | bound, bits per byte |")
    repeated, ours, of, trained = (json.loads((ROOT / "results" / f"{name}.json").read_text()) for name in (
        "repeated", "claim", "claim_correction", "claim_training"))
    mends = [next(v["result"] for key, v in of["models"].items() if f"/dsl-{seed}/" in key) for seed in range(3)]
    told = [(ours["cells"]["dsl/posterior/16"]["nll_by_seed"][:3], [r["random"]["evidence"]["at_98"]["fixed"][0] for r in mends],
             [trained["trainings"][f"dsl-{seed}"]["validation"]["roar"][0] for seed in range(3)])]
    repeated = repeated["variants"] | json.loads((ROOT / "results" / "spheres.json").read_text())["variants"]
    for name in ("dsl_E_fixed", "dsl_D128", "dsl_D256", "dsl_D128_E_fixed"):
        row = repeated[name]
        scores = ([each[what][0] for each in row["trained"].values()] for what in ("fixed_at_98", "roar"))
        told.append((row["nll_by_seed"]["posterior/16"], *scores))
    assert [row[1:] for row in rows] == [[", ".join(f"{x:.2f}" for x in nll), ", ".join(f"{100 * x:.1f}" for x in mended),
                                          ", ".join(f"{x:.3f}" for x in bound)] for nll, mended, bound in told]
    (base, *_), (frozen, *_), (large, *_), (larger, *_), (both, *_) = told
    assert gain(large, larger).replace("0.00 (", "95% ").strip("−") in RESULTS["ablations"]
    assert f"frozen embeddings of 128 {gain(large, both)}, though these mend more" in RESULTS["ablations"]
    assert f"frozen embeddings by {gain(base, frozen).replace(' (', ' nats (95% over the three pairs: ')}, 128 " in RESULTS["ablations"]
    assert f"128 dimensions by {gain(base, large)}; both mend more" in RESULTS["ablations"]


def test_the_same_by_mend_stands_in_its_json():
    (rows,) = rows_below(RESULTS["ablations"], "| `mend`, by seed | T = 8 | 16 | 32 | errors mended, % |")
    each = json.loads((ROOT / "results" / "each.json").read_text())["variants"]
    cells, both = claims("claim_more_texts")[0]["cells"], [each[name] for name in ("dsl_each_E_fixed", "dsl_each_D128")]
    nlls = [{T: cells[f"dsl/mend/{T}"]["nll_by_seed"] for T in (8, 16, 32)},
            *({T: of["nll_by_seed"][f"mend/{T}"] for T in (8, 16, 32)} for of in both),
            {T: cells[f"mdlm_more/mend-recorded/{4 * T}"]["nll_by_seed"] for T in (8, 16)} | {32: []}]
    assert [row[1:4] for row in rows] == [[", ".join(f"{x:.2f}" for x in of[T]) for T in (8, 16, 32)] for of in nlls]
    mended = [[100 * one["fixed_at_98"][0] for one in of["trained"].values()] for of in both]
    assert [row[4] for row in rows[1:3]] == [", ".join(f"{x:.1f}" for x in shares) for shares in mended]
    base, frozen, large, rival = nlls
    said = [f"better by {gain(base[8], large[8]).replace(' (', ' at T = 8 (95% over the three pairs: ')}, in each pair",
            f"Frozen embeddings are better by {gain(base[8], frozen[8])}",
            f"undecided at T = 8 ({gain(large[8], rival[8]).replace(' (', '; 95% over the three pairs ')} and met at T = 16 "
            f"({gain(large[16], rival[16]).replace(' (', '; ')}, outside"]
    assert not [words for words in said if words not in RESULTS["ablations"]], said


def test_the_calls_that_128_dimensions_save_follow_from_the_jsons():
    cells, steps = claims("claim_more_texts")[0]["cells"], (4, 8, 16, 32, 64)
    ours = json.loads((ROOT / "results" / "each.json").read_text())["variants"]["dsl_each_D128"]
    for model, form in (("mdlm_more", "needs {:.1f} times DSL's 8 (by seed {:.1f}, {:.1f}, {:.1f}; 95% by Student's t {:.1f} to {:.1f};"),
                        ("masked", "of the control {:.1f} times ({:.1f}, {:.1f}, {:.1f}; {:.1f} to {:.1f})")):
        names = sorted({key.rsplit("/", 1)[0] for key in cells if key.startswith(f"{model}/")})
        nfe = {("dsl", T): T for T in steps} | {(name, T): cells[f"{name}/{T}"]["nfe"] for name in names for T in steps}
        nlls = [{(name, T): cells[f"{name}/{T}"]["nll_by_seed"][seed] for name in names for T in steps} for seed in range(3)]
        nlls.append({(name, T): cells[f"{name}/{T}"]["nll"][0] for name in names for T in steps})
        own = [{("dsl", T): ours["nll_by_seed"][f"mend/{T}"][seed] for T in (8, 16)} for seed in range(3)]
        own.append({("dsl", T): ours["nll"][f"mend/{T}"][0] for T in (8, 16)})
        (*by_seed, pooled), late = zip(*(claim.ratios(of | mine, nfe, "dsl", names, (8, 16), steps) for of, mine in zip(nlls, own)))
        middle, half = claim.difference(np.log(by_seed), np.zeros(3), paired=True)
        assert form.format(pooled, *by_seed, *np.exp([middle - half, middle + half])) in RESULTS["ablations"]
        assert np.isinf(late).all()  # DSL's 16 calls
        low, high = np.exp([middle - half, middle + half])
        assert model == "masked" or f"{pooled:.1f} of the ratio of calls to MDLM there (95%: {low:.1f} to {high:.1f})" in README


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
