"""measures.py: what is read off curves of known shape, and a whole run on the toy, whose numbers are those of its files."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import measures
from config import Problem, parse
from metrics import conditional_entropy

REAL = {"entropy": 2.75, "entropy_2": 1.05, "entropy_3": 1.2}


def asked(flags=""):
    return parse(measures.Config, flags.split())


def points(shift):
    """NLL = entropy + shift at five temperatures; the other entropies are a half and a quarter of it, JS is lowest at the third."""
    return [{"nll": h + shift, "entropy": h, "entropy_2": h / 2, "entropy_3": h / 4, "js_4": shift + abs(h - 3), "not_mauve": shift}
            for h in (2.0, 2.5, 3.0, 3.5, 4.0)]


def test_quality_is_read_where_the_entropy_is_that_of_real_text_or_at_the_best_temperature():
    found = measures.qualities(points(0.5), REAL)
    assert math.isnan(found.pop("entropy_3"))  # 4.8 would be needed, and there is no more than 4
    assert found == pytest.approx({"entropy": 3.25, "entropy_2": 2.6, "js_4": 0.5, "not_mauve": 0.5})


def test_the_ratio_of_calls_is_that_of_the_curves():
    """The other's quality is 4 - log2(T) / 4, so it needs 16 calls for 3, which ours has with 8, and 2^0.2 times fewer for 0.05 more."""
    cfg = asked("--at 8 16 --calls 4 8 16 32 64")
    other = {T: 4 - math.log2(T) / 4 for T in cfg.calls}
    shifts = np.array([-0.05, 0, 0.05])

    def cell(T, value, end=0.0):
        of = {"entropy": value, "entropy_2": math.nan, "entropy_3": value + end, "js_4": value - end, "not_mauve": value}
        return {"nfe": float(T), "all": of, "by_seed": [{what: x + shift for what, x in of.items()} for shift in shifts]}

    found = {(cfg.other, T): {**(c := cell(T, value)), "by_seed": [c["all"]] * 3} for T, value in other.items()}
    found |= {(cfg.ours, 8): cell(8, 3.0, 0.7), (cfg.ours, 16): cell(16, 2.75)}
    out = measures.compare(found, cfg)
    at = out["entropy"][8]
    assert at["ratio"] == pytest.approx(2) and at["by_seed"] == pytest.approx(list(2 * 2 ** (-4 * shifts))) and at["ends"] == [0.5, 8]
    half = 4.303 * 4 * math.log(2) * 0.05 / 3**0.5
    assert at["student"] == pytest.approx([2 * math.exp(-half), 2 * math.exp(half)]) and out["entropy"][16]["ratio"] == pytest.approx(2)
    assert out["entropy_3"][8]["ratio"] == 0.5 and out["js_4"][8]["ratio"] == 8  # better at once, and never
    assert np.isnan([*out["entropy_3"][8]["student"], *out["js_4"][8]["student"], out["entropy_2"][8]["ratio"]]).all()


def test_a_whole_run_tells_what_stands_in_its_files(claimed, tmp_path, capsys):
    cfg = asked("--data toy --other mdlm_more/remdm --at 4 --calls 4 16 --factors 0.5 1 2 --texts 6 --workers 1")
    measures.main(cfg)
    found = json.loads((tmp_path / "results" / "measures.json").read_text())
    assert (tmp_path / "results" / "measures.png").exists() and "ratio at 4" in capsys.readouterr().out and found["num_samples"] == 18
    assert list(found["cells"]) == ["dsl/mend/4", "mdlm_more/remdm/4", "mdlm_more/remdm/16"]
    seen, temperatures = found["cells"]["dsl/mend/4"]["temperatures"], set()
    for s, seed in enumerate((0, 1, 2)):
        files = {float(f.name.split("-")[2]): f for f in (tmp_path / "out/reproduce/samples_measures/dsl/mend").glob(f"4-{seed}-*.jsonl")}
        texts = [[json.loads(line)["ids"] for line in files[t].read_text().splitlines()] for t in sorted(files)]
        temperatures.add(tuple(sorted(files)))
        assert [len(t) for t in texts] == [6, 6, 6]
        assert [p["entropy_2"] for p in seen["by_seed"][s]] == pytest.approx([conditional_entropy(t, 2) for t in texts])
    (told,) = temperatures
    assert np.array(told) / told[1] == pytest.approx([0.5, 1, 2], abs=0.01)
    assert [p["nll"] for p in seen["all"]] == pytest.approx(np.mean([[p["nll"] for p in of] for of in seen["by_seed"]], 0))
    for other, match in (({"other": "mdlm/remdm"}, "has no mdlm/remdm: choose --other of"), ({"texts": 13}, "39 .* there are 36: lower"),
                         ({"ours": "dsl/soft"}, "has no cell dsl/soft/4")):
        with pytest.raises(Problem, match=match):
            measures.main(replace(cfg, **other))


@pytest.mark.parametrize("flags", ["--texts 1", "--factors 0 1", "--at 1"])
def test_impossible_flags_are_usage_errors(flags, capsys):
    with pytest.raises(SystemExit):
        asked(flags)
    assert "must be at least 2, --factors above 0" in capsys.readouterr().err
