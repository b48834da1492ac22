"""reproduce.py --cool: how far the temperature falls, chosen beside settings that an earlier run chose."""

import json
import shutil

import pytest

import reproduce
import reproduce_config
from config import Problem
from reproduce_config import parse_args
from sampler_config import parse_args as sampler_args


def test_cooling_is_chosen_by_one_judge_on_the_thrown_away_seed_but_for_what_is_published(claimed, tmp_path):
    (_, ran), out = claimed, tmp_path / "out" / "reproduce"
    flags = "--data toy --workers 1 --calls 4 16 --paths remdm posterior --results results/cooled".split()
    found, earlier = json.loads((tmp_path / "results" / "claim_tuning.json").read_text()), tmp_path / "earlier.json"
    earlier.write_text(json.dumps({**found, "judge": "of another machine"}))
    shutil.rmtree(out / f"dsl-lr{found['learning_rates']['dsl']}")  # of the thrown-away seed, which is trained where it is missing
    reproduce.main(parse_args([*flags, "--tuning", str(earlier), "--cool"]))
    assert len(ran) == 1 and "-lr" in ran[0][ran[0].index("--out_dir") + 1]
    cooled = json.loads((tmp_path / "results" / "cooled_tuning.json").read_text())
    assert cooled["cool"] and not found["cool"] and cooled["judge"] == found["judge"] and cooled["paths"].keys() == {
        "ar/ar", "mdlm_more/remdm", "masked/remdm", "dsl/remdm", "dsl/posterior"}
    assert all(cooled["paths"][name] == found["paths"][name] for name in cooled["paths"] if name != "dsl/posterior")
    tried = [(e["T"], e["setting"].get("cooling", 0)) for e in cooled["paths"]["dsl/posterior"]]
    assert sorted(tried) == [(T, c) for T in (8, 16, 32) for c in (0, 0.2, 0.4, 0.6)]
    for T in (8, 16, 32):  # all at the setting that the earlier run chose there
        best, _ = reproduce_config.settings_at(found["paths"]["dsl/posterior"], T)
        at = [e for e in cooled["paths"]["dsl/posterior"] if e["T"] == T]
        assert all({key: value for key, value in e["setting"].items() if key != "cooling"} == best for e in at)
        for e in at:
            files = (out / "samples_tuning" / "dsl" / "posterior").glob(f"{T}-lr*-cooling{e['setting'].get('cooling')}.jsonl")
            assert ("cooling" in e["setting"]) == any("--cooling=" in json.loads(f.read_text().splitlines()[0])["settings"] for f in files)
    setting, _ = reproduce_config.settings_at(cooled["paths"]["dsl/posterior"], 16)
    cells = reproduce_config.cells(parse_args(flags), cooled["paths"], 16)
    assert {sampler_args(argv).cooling for argv in cells["dsl/posterior", 16]} == {setting.get("cooling", 0)}

    earlier.write_text(json.dumps({**cooled, "judge": "of another machine"}))  # what has been chosen so is only read
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
