"""reproduce.py --cool: how far the temperature falls, chosen beside settings that an earlier run chose; and what results/cool.md tells."""

import json
import shutil

import pytest
from pages import MODELS, RESULTS, claims, rows_below, tells, told_ratio, under

import reproduce
import reproduce_config
from config import Problem
from reproduce_config import parse_args, settings_at
from sampler_config import parse_args as sampler_args


class TunedError(Exception):
    """The tuning has been written; what follows is as without --cool."""


def test_cooling_is_chosen_by_one_judge_on_the_thrown_away_seed_but_for_what_is_published(claimed, tmp_path, monkeypatch):
    def stop(*args):
        raise TunedError

    monkeypatch.setattr(reproduce, "draw", stop)
    (_, ran), out = claimed, tmp_path / "out" / "reproduce"
    flags = "--data toy --workers 1 --calls 4 16 --paths remdm posterior --results results/cooled".split()
    found, earlier = json.loads((tmp_path / "results" / "claim_tuning.json").read_text()), tmp_path / "earlier.json"
    earlier.write_text(json.dumps({**found, "judge": "of another machine"}))
    shutil.rmtree(out / f"dsl-lr{found['learning_rates']['dsl']}")  # of the thrown-away seed, which is trained where it is missing
    with pytest.raises(TunedError):
        reproduce.main(parse_args([*flags, "--tuning", str(earlier), "--cool"]))
    assert len(ran) == 1 and "-lr" in ran[0][ran[0].index("--out_dir") + 1]
    cooled = json.loads((tmp_path / "results" / "cooled_tuning.json").read_text())
    assert cooled["cool"] and not found["cool"] and cooled["judge"] == found["judge"] and cooled["paths"].keys() == {
        "ar/ar", "mdlm_more/remdm", "masked/remdm", "dsl/remdm", "dsl/posterior"}
    assert all(cooled["paths"][name] == found["paths"][name] for name in cooled["paths"] if name != "dsl/posterior")
    tried = [(e["T"], e["setting"].get("cooling", 0)) for e in cooled["paths"]["dsl/posterior"]]
    assert sorted(tried) == [(T, c) for T in (8, 16, 32) for c in (0, 0.2, 0.4, 0.6)]
    for T in (8, 16, 32):  # all at the setting that the earlier run chose there
        best, _ = settings_at(found["paths"]["dsl/posterior"], T)
        at = [e for e in cooled["paths"]["dsl/posterior"] if e["T"] == T]
        assert all({key: value for key, value in e["setting"].items() if key != "cooling"} == best for e in at)
        for e in at:
            files = (out / "samples_tuning" / "dsl" / "posterior").glob(f"{T}-lr*-cooling{e['setting'].get('cooling')}.jsonl")
            assert ("cooling" in e["setting"]) == any("--cooling=" in json.loads(f.read_text().splitlines()[0])["settings"] for f in files)
    setting, _ = settings_at(cooled["paths"]["dsl/posterior"], 16)
    cells = reproduce_config.cells(parse_args(flags), cooled["paths"], 16)
    assert {sampler_args(argv).cooling for argv in cells["dsl/posterior", 16]} == {setting.get("cooling", 0)}

    earlier.write_text(json.dumps({**cooled, "judge": "of another machine"}))  # what has been chosen so is only read
    with pytest.raises(TunedError):
        reproduce.main(parse_args([*flags[:-1], "results/read", "--tuning", str(earlier), "--cool"]))
    assert json.loads((tmp_path / "results" / "read_tuning.json").read_text())["paths"] == cooled["paths"] and len(ran) == 1
    with pytest.raises(Problem, match="lacks settings"):  # without --cool that is no choice of all settings
        reproduce.main(parse_args([*flags, "--tuning", str(earlier)]))
    with pytest.raises(Problem, match="has no settings of dsl/mend for --cool to start from"):
        reproduce.main(parse_args([*flags[:-3], "mend", *flags[-2:], "--tuning", str(earlier), "--cool"]))


def test_cool_without_a_tuning_is_a_usage_error(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--cool"])
    assert "name their --tuning" in capsys.readouterr().err


def test_what_cooling_changes_stands_in_the_jsons():
    """The ratios and their intervals; what MAUVE, n-grams and repetition are without and with it; and that of the settings
    that were tried the largest fall is the best."""
    (before, _), (found, _), said = claims("claim_D128_again"), claims("claim_cool_again"), under(RESULTS["cool"])
    ratios = [told_ratio(of["against_best"]["at"]["8"]) for of in (found, found["controls"]["masked"])]
    assert tells(said, *ratios)
    (rows,) = rows_below(said, "| without and with cooling | T = 4 | 8 | 16 | 32 | 64 |")
    what = {"MAUVE": ("mauve", 2), "2-gram JS": ("js_2", 3), "4-gram JS": ("js_4", 3), "repetition": ("repetition", 3)}
    for row, *values in rows:
        who, path, column = row.replace("`", "").split(", ")
        (name, digits), keys = what[column], [f"{MODELS[who]}/{path}/{T}" for T in (4, 8, 16, 32, 64)]
        pairs = [[of["cells"][key] for of in (before, found)] for key in keys]
        assert values == [", ".join(f"{c[name][0]:.{digits}f}" for c in pair) if len({c["num_samples"] for c in pair}) == 1 else "-"
                          for pair in pairs], row
    best = [settings_at(tried, T)[0].get("cooling") for name, tried in found["tuning"].items()
            for T in (8, 16, 32, 64) if name.split("/")[1] not in ("remdm", "ar")]
    assert len(set(best)) == 1
    assert tells(said, f"{best[0]}, {len(best)}, {len(best)}")
