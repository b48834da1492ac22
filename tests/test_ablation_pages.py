"""The tables of results/ablations.md, of "Start or rate" and of settings and doubt of the three other seeds, and some of their sentences,
tell the numbers of their jsons."""

import json
import re
import shlex

import numpy as np

from pages import MODELS, README, RESULTS, ROOT, by_seed, claims, gain, rows_below, tells, told_ratio, under, value
from train_config import parse_args as train_args
from validate import own_loss


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
    assert tells(under(RESULTS["ablations"], "Two of them with three seeds"), gain(base, frozen), gain(base, large),
                 gain(large, larger).split(" (")[1], gain(large, both))


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
    said = under(RESULTS["ablations"], "Two of them with three seeds")
    assert tells(said, gain(base[8], large[8]), gain(base[8], frozen[8]))
    assert tells(said, *(f"{T}, {gain(large[T], rival[T])}" for T in (8, 16)))


def test_another_rate_and_32_dimensions_with_the_other_seeds_stand_in_their_json():
    header = "| `mend`, by seed | T = 8 | 16 | 32 | errors mended, % | bound, bits per byte | own loss, nats per token |"
    (rows,) = rows_below(RESULTS["ablations"], header)
    found = json.loads((ROOT / "results" / "rates.json").read_text())["variants"]
    names = ("dsl_each_D128", "dsl_each_D32", "dsl_each_D128_slow")
    for name, (_, *values) in zip(names, rows, strict=True):
        of, trained = found[name]["nll_by_seed"], found[name]["trained"].values()
        losses = [own_loss(each["validation"], train_args(shlex.split(each["command"])[2:])) for each in trained]
        assert values == [*(", ".join(f"{x:.2f}" for x in of[f"mend/{T}"]) for T in (8, 16, 32)),
                          ", ".join(f"{100 * each['fixed_at_98'][0]:.1f}" for each in trained),
                          ", ".join(f"{each['roar'][0]:.3f}" for each in trained), ", ".join(f"{x:.4f}" for x in losses)], name
    ours, small, slow = ({T: found[name]["nll_by_seed"][f"mend/{T}"] for T in (8, 16, 32)} for name in names)
    before, after = (claims(name)[0]["cells"] for name in ("claim_more_texts", "claim_D128_more_texts"))
    six = [gain(*(cells[f"dsl/mend/{T}"]["nll_by_seed"] + of[T] for cells, of in ((before, small), (after, ours)))) for T in (8, 16, 32)]
    said = under(RESULTS["ablations"], "32 dimensions and another rate, with the other seeds")
    rival = claims("claim_D128_again")[0]["cells"]["mdlm_more/mend-recorded/32"]["nll_by_seed"]
    assert tells(said, gain(small[8], ours[8]), six[0], f"{six[1]}, 16", f"{six[2]}, 32")
    assert tells(said, gain(slow[8], ours[8]), gain(slow[8], rival))
    assert tells(under(RESULTS["sphere"]), six[0])


def rate_row(label, nll, trained):
    """The row of a learning rate: NLLs at T = 8, 16, 32 by seed, and the loss that each was trained with; the label names the rate."""
    configs = [train_args(shlex.split(each["command"])[2:]) for each in trained]
    losses = [own_loss(each["validation"], config) for each, config in zip(trained, configs)]
    assert {config.lr for config in configs} == {float(re.search(r"[\d.]+e-\d", label)[0])}
    return [label, *(", ".join(f"{x:.2f}" for x in nll[T]) for T in (8, 16, 32)), ", ".join(f"{x:.3f}" for x in losses)]


def test_rates_by_the_sampler_stand_in_their_jsons():
    header = "| learning rate | T = 8 | 16 | 32 | own loss: DSL's in nats per token, MDLM's its bound in bits per byte |"
    (rows,) = rows_below(RESULTS["ablations"], header)
    two, three, training = (json.loads((ROOT / "results" / f"{name}.json").read_text()) for name in (
        "rates", "rates_all", "claim_D128_again_training"))
    cells = claims("claim_D128_again")[0]["cells"]
    more = {T: cells[f"mdlm_more/mend-recorded/{T}"]["nll_by_seed"] for T in (8, 16, 32)}
    found = [(more, [training["trainings"][f"mdlm_more-{seed}"] for seed in (3, 4, 5)])]
    for of, name, path in ((two, "dsl_each_D128", "mend"), (two, "dsl_each_D128_slow", "mend"), (three, "dsl_each_D128_fast", "mend"),
                           (three, "mdlm_each_slow", "mend-recorded"), (three, "mdlm_each_fast", "mend-recorded")):
        variant = of["variants"][name]
        found.append(({T: variant["nll_by_seed"][f"{path}/{T}"] for T in (8, 16, 32)}, variant["trained"].values()))
    found.insert(3, found.pop(0))  # the table has DSL's first
    assert rows == [rate_row(label, *of) for (label, *_), of in zip(rows, found, strict=True)]
    ours, slow, fast, more, more_slow, more_fast = (nll for nll, _ in found)
    said = under(RESULTS["ablations"], "Rates by the sampler")
    assert tells(said, *(gain(of[T], ours[T]) for of in (fast, slow) for T in (8, 16, 32)))
    assert tells(said, gain(more_slow[32], more[32]), gain(more[32], more_fast[32]), gain(ours[8], more_fast[32]))


def test_the_control_s_rates_by_the_sampler_stand_in_their_json():
    """As above, with seeds 0 to 2: how much worse half the rate is, and twice the rate, at each T."""
    said = under(RESULTS["ablations"], "Rates by the sampler")
    (rows,) = rows_below(said, "| the control's learning rate | T = 8 | 16 | 32 | own loss, nats per token |")
    variants = json.loads((ROOT / "results" / "rates_control.json").read_text())["variants"]
    names = "dsl_masks_each", "dsl_masks_each_slow", "dsl_masks_each_fast"
    nll = [{T: variants[name]["nll_by_seed"][f"mend-recorded/{T}"] for T in (8, 16, 32)} for name in names]
    assert rows == [rate_row(label, of, variants[name]["trained"].values())
                    for (label, *_), of, name in zip(rows, nll, names, strict=True)]
    assert tells(said, *(gain(of[T], nll[0][T]) for of in nll[1:] for T in (8, 16, 32)))


MENDING = "| 128 dimensions, `mend`, by seed | T = 8 | 16 | 32 | random errors mended as evidence, % | bound, bits per byte |"
FROZEN = "dsl_each_D128", "dsl_each_D128_E_fixed"
MENDED = *FROZEN, "dsl_each_D128_E_fixed_slow", "mdlm_each"


def mending(said, name, models):
    """Of a table of MENDING and its jsons: NLLs {T: by seed}, errors mended in %, and bounds of each model, by seed, as its rows say."""
    (rows,) = rows_below(said, MENDING)
    found, corrected = (json.loads((ROOT / "results" / f"{of}.json").read_text()) for of in (name, f"{name}_correction"))
    nll = [{T: found["variants"][model]["nll_by_seed"].get(f"mend/{T}", []) for T in (8, 16, 32)} for model in models]
    mends = [[100 * of["result"]["random"]["evidence"]["at_98"]["fixed"][0] for key, of in corrected["models"].items()
              if f"/{model}-" in key] for model in models]
    bounds = [[each["roar"][0] for each in found["variants"][model]["trained"].values()] for model in models]
    assert [row[1:] for row in rows] == [
        [", ".join(f"{x:.2f}" for x in of[T]) for T in (8, 16, 32)]
        + [", ".join(f"{x:.1f}" for x in shares), ", ".join(f"{x:.3f}" for x in bound)]
        for of, shares, bound in zip(nll, mends, bounds, strict=True)]
    return nll, np.array(mends), np.array(bounds)


def test_what_mends_most_stands_in_its_jsons():
    """`mend`, random errors mended as evidence, and bounds, by seed; of how many times what MDLM continued mends that is."""
    said = under(RESULTS["ablations"], "What mends most")
    (base, frozen, slow, _), (*shares, rival), _ = mending(said, "mending", MENDED)
    assert tells(said, *(f"{x.mean() / rival.mean():.1f}" for x in shares), ", ".join(f"{x:.1f}" for x in (shares[2] / rival)[:2]))
    assert [(x > 3 * rival).tolist() for x in shares] == [[False, False, True]] * 3
    assert 3 * 9.6 > max(x.mean() for x in shares)
    assert tells(said, *(gain(base[T], frozen[T]) for T in (8, 16, 32)))
    assert tells(said, *(gain(slow[T], frozen[T]) for T in (8, 16, 32)))


def test_what_frozen_embeddings_bring_with_the_other_seeds_stands_in_its_jsons():
    """Gains of three pairs and of all six, and that they do not change the default, as had been settled."""
    first, said = (under(RESULTS["ablations"], of) for of in ("What mends most", "Frozen embeddings, with the other seeds"))
    (old, old_mends, _), (new, mends, bounds) = mending(first, "mending", MENDED), mending(said, "frozen", FROZEN)
    base, frozen = ({T: before[T] + after[T] for T in (8, 16, 32)} for before, after in zip(old, new))
    gains = [[gain(a[T], b[T]) for T in (8, 16, 32)] for a, b in (new, (base, frozen))]
    assert tells(said, *gains[0], *gains[1])
    assert tells(RESULTS["predictions"], f"{mends[1].mean():.1f}, {mends[0].mean():.1f}")
    base, frozen = np.concatenate([old_mends[:2], mends], 1)
    assert tells(said, f"{frozen.mean():.1f}, {base.mean():.1f}") and (frozen > base).all()
    assert (abs(bounds[0] - bounds[1]) < 0.006).all()
    assert max(np.subtract(*(of[T] for of in new)).mean() for T in (8, 16, 32)) < 0.04


def test_settings_of_its_own_for_128_dimensions_stand_in_their_json():
    """What each draft brings with its best gamma, the best of them in bold; ratios at T = 8, margins of (a), and the errors by texts."""
    said, (found, _) = under(RESULTS["again"], "Settings of its own"), claims("claim_D128_again_settings")
    (rows,) = rows_below(said, "| model, path | T | draft 0.2 | 0.4 | 0.6 | 0.8 |")
    curve = ""
    for who, T, *values in rows:
        curve = f"{MODELS[who.split(', `')[0]]}/{who.split('`')[1]}" if who else curve
        best = [min((e["nll"], e["setting"].get("gamma", 2.0)) for e in found["tuning"][curve] if e["T"] == int(T)
                    and e["setting"]["draft"] == draft and e["nll"] is not None) for draft in (0.2, 0.4, 0.6, 0.8)]
        assert values == [(f"**{nll:.2f}**" if nll == min(best)[0] else f"{nll:.2f}") + f" ({gamma:g})" for nll, gamma in best], (curve, T)
    best = [of["against_best"]["at"]["8"] for of in (found, found["controls"]["masked"])]
    margins = [next(d for d in found["duels"] if d["ours"] == f"dsl/mend/{T}" and "remdm" not in d["other"])["nll"] for T in (4, 8)]
    errors = [c["text_stderr"] for key, c in found["cells"].items() if not key.startswith("ar/")]
    nlls = [found["cells"][f"{name}/{T}"]["nll"] for name in ("dsl/mend", "mdlm_more/mend-recorded", "masked/mend-recorded")
            for T in (8, 16, 32)]
    assert tells(said, ", ".join(map(value, nlls)), *(told_ratio(at, seeds=by_seed(found, at)) for at in best),
                 ", ".join(map(value, margins)), f"{np.median(errors):.3f}, {max(errors):.3f}")
    assert tells(under(README, "The paper's claim"), told_ratio(best[0]))


def test_what_perfect_doubt_brings_stands_in_its_jsons():
    """NLL where unigrams are matched, by seed, and where pairs are, of each model by each kind of doubt; and how much its own is better."""
    said, rows, found = under(RESULTS["again"], "What would perfect doubt bring?"), [], {}
    for who, name, key in (("DSL", "", "dsl/mend/8"), ("MDLM continued", "", "mdlm_more/mend-recorded/8"),
                           ("the control", "_control", "masked/mend-recorded/8")):
        rows.append([who])
        for kind in ("random", "own", "exact"):
            path = ROOT / "results" / f"claim_D128_again_doubt_{kind}{name}.json"
            found[who, kind] = json.loads(path.read_text())["cells"][key] if path.exists() else None
            rows[-1].append(told_nlls(found[who, kind]) if path.exists() else "")
    assert rows == next(rows_below(said, "| | by chance | by its own | exact |"))
    own, exact = ([of["entropy"] for of in found["DSL", kind]["by_seed"]] for kind in ("own", "exact"))
    assert tells(said, ", ".join([*(f"{b - a:.2f}" for a, b in zip(own, exact)), gain(exact, own).split(" (")[1]]))
    assert tells(said, f"{found['MDLM continued', 'exact']['nfe']:.0f}, 8")


def test_what_exact_doubt_brings_at_a_gamma_of_its_own_stands_in_its_jsons():
    """As above, with seeds 0 to 2; how much better it is at 64 than at 4, and than each model's own doubt at the gamma that suits that."""
    said, rows = under(RESULTS["again"], "At a gamma of its own"), []
    found = {(kind, gamma): json.loads((ROOT / "results" / f"claim_D128_doubt_{kind}_{gamma}.json").read_text())["cells"]
             for kind, gammas in (("own", (1, 4, 16)), ("exact", (4, 16, 64))) for gamma in gammas}
    keys = {"DSL": "dsl/mend/8", "MDLM continued": "mdlm_more/mend-recorded/8"}
    for who, key in keys.items():
        rows.append([who, *(told_nlls(cells[key]) for cells in found.values())])
    assert rows == next(rows_below(said, "| | its own, gamma 1 | 4 | 16 | exact, gamma 4 | 16 | 64 |"))
    nll = {(who, *of): [seed["entropy"] for seed in cells[key]["by_seed"]] for of, cells in found.items() for who, key in keys.items()}
    assert tells(said, *(gain(nll[who, "exact", 4], nll[who, "exact", 64]) for who in keys))
    assert tells(said, *(gain(nll[who, "exact", 64], nll["DSL", "own", 1]) for who in keys))


def told_nlls(cell):
    by_seed = ", ".join(f"{of['entropy']:.2f}" for of in cell["by_seed"])
    given = cell["all"]["entropy_2"]
    return f"{cell['all']['entropy']:.2f} ({by_seed}); {'-' if given is None else f'{given:.2f}'}"
