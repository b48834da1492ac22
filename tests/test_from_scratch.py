"""reproduce.py --from_scratch: MDLM, the control and DSL by the same number of steps, none from another's end; and --fine_tune_steps: all
three for other than the scale's."""

import json
import shutil

import pytest
import torch
from train_config import parse_args as train_args

import reproduce
import reproduce_config
from config import Problem
from reproduce_config import Curve, parse_args, trainings

FLAGS = "--data toy --workers 1 --from_scratch --seeds 0 2 --out_dir out/scratch --results results/scratch".split()


def test_all_models_start_from_scratch_and_see_as_many_texts():
    cfg = parse_args("--from_scratch --out_dir out/scratch".split())
    rates = {model: lr for model, (lr,) in cfg.lrs.items()}
    plan = trainings(cfg, rates, cfg.training_seeds)
    mdlm = vars(train_args(trainings(parse_args([]))["mdlm"]))
    for seed in cfg.training_seeds:
        ours, theirs, control = (vars(train_args(plan[f"{model}-{seed}"])) for model in ("dsl", "mdlm_more", "masked"))
        assert {name for name in ours if ours[name] != theirs[name]} == {"objective", "lr", "out_dir", "d_embed"}
        assert {name for name in ours if ours[name] != control[name]} == {"endpoint", "out_dir"}
        assert {name for name in mdlm if mdlm[name] != theirs[name]} <= {"seed", "out_dir"}  # the claim's MDLM
    assert len(plan) == 2 + 3 * len(cfg.training_seeds) and len(trainings(cfg)) == 2 + 3
    assert "mdlm" not in {curve.model for curve in cfg.curves}


def test_a_flag_that_a_checkpoint_does_not_know_had_its_default(toy, tmp_path):
    cfg, ran = toy
    plan = {"mdlm": trainings(cfg)["mdlm"]}
    reproduce.train_all(cfg, plan)
    path = tmp_path / "out" / "reproduce" / "mdlm" / "ckpt.pt"
    ckpt = torch.load(path, weights_only=True)
    del ckpt["config"]["mask_share"]
    torch.save(ckpt, path)
    reproduce.train_all(cfg, plan)
    assert len(ran) == 1


def test_fine_tuning_waits_for_its_start(toy):
    cfg, ran = toy
    plan = trainings(cfg)
    reproduce.train_all(cfg, {name: plan[name] for name in ("dsl-lr1e-3", "judge", "mdlm")})
    assert [command[command.index("--out_dir") + 1].split("/")[-1] for command in ran] == ["judge", "mdlm", "dsl-lr1e-3"]


@pytest.mark.parametrize("flags, asked", [("--from_scratch", "choose another --out_dir"),
                                          ("--from_scratch --mdlm_per_seed --out_dir out/x", "leave out --mdlm_per_seed"),
                                          ("--fine_tune_steps 8 --rates 1 1 1", "choose another --out_dir"),
                                          ("--rates 1 1 1", "choose another --out_dir"),
                                          ("--fine_tune_steps 8 --out_dir out/x", "needs --rates"),
                                          ("--fine_tune_steps -8 --out_dir out/x --rates 1 1 1", "cannot be negative"),
                                          ("--from_scratch --out_dir out/x --rates 1 1 1", "leave out --mdlm_per_seed, --fine_tune_steps"),
                                          ("--rates 1e-3 2e-3 --out_dir out/x", "are three numbers above 0"),
                                          ("--rates 1e-3 2e-3 nan --out_dir out/x", "are three numbers above 0")])
def test_other_models_want_another_folder_and_one_way_to_start(flags, asked, capsys):
    with pytest.raises(SystemExit):
        parse_args(flags.split())
    assert asked in capsys.readouterr().err


def test_a_cell_alone_is_of_the_models_and_as_many_texts_as_its_run():
    cfg = parse_args("--from_scratch --out_dir out/scratch --seeds 0 2 --calls 4 16 --paths remdm --texts 36".split())
    assert reproduce_config.as_it_was(parse_args(["--out_dir", "out/scratch"]), vars(cfg)) == cfg


def test_the_whole_from_scratch(toy, tmp_path, capsys):
    """With the settings of a tuning after fine-tuning, whose rates are not taken; one cell anew needs its own model alone."""
    cfg, ran = toy
    reproduce_config.CURVES.append(Curve("mdlm", "remdm", [{}], {"top_p": 0.9}))
    entry = {"T": 8, "setting": {}, "nll": 2.0, "temperature": 1.0}
    known = {curve.name: [{**entry, "T": T, "setting": setting} for setting in curve.grid for T in (8, 16, 32)]
             for curve in reproduce_config.CURVES if curve.path != "posterior"}
    rates = dict.fromkeys(reproduce_config.WAYS, "1e-3")
    (tmp_path / "tuning.json").write_text(json.dumps({"learning_rates": rates, "paths": known, "judge": "another"}))
    flags = [*FLAGS, "--calls", "4", "16", "--paths", "remdm", "--tuning", "tuning.json"]
    with pytest.raises(Problem, match="--scale gpu does not train all"):
        reproduce.main(parse_args([*flags, "--scale", "gpu"]))
    reproduce.main(parse_args(flags))
    started = {args.out_dir.split("/")[-1]: args for args in (train_args(command[2:]) for command in ran)}
    assert started.keys() == {"judge", "ar", *(f"{model}-{seed}" for model in reproduce_config.WAYS for seed in (0, 2))}
    assert {(args.init_from, args.max_steps) for args in started.values()} == {("scratch", 4)}
    assert {name: args.lr for name, args in started.items() if name[-1] == "2"} == {"mdlm_more-2": 1e-3, "masked-2": 4e-3, "dsl-2": 4e-3}
    found = json.loads((tmp_path / "results" / "scratch.json").read_text())
    assert {key.split("/")[0] for key in found["cells"]} == {"ar", *reproduce_config.WAYS}
    assert len(found["against_best"]["at"]["4"]["by_seed"]) == 2
    chose = json.loads((tmp_path / "results" / "scratch_tuning.json").read_text())
    assert (chose["learning_rates"], chose["from_scratch"], chose["judge"]) == (rates, False, "another")  # of the tuning that was named
    assert [duel["num_samples"] for duel in found["duels"]] == [[36, 36]] * len(found["duels"])  # as many as with all three seeds
    assert found["cells"]["masked/remdm/4"]["num_samples"] == 16

    for name in ("dsl-0", "masked-2"):
        shutil.rmtree(tmp_path / "out" / "scratch" / name)
    cell = "--data toy --workers 1 --results results/scratch --cell dsl/remdm/4 --out_dir".split()
    reproduce.main(parse_args([*cell, "out/scratch"]))
    assert len(ran) == 9 and ran[-1][ran[-1].index("--out_dir") + 1] == "out/scratch/dsl-0"
    assert "dsl/remdm/4: NLL at the data's entropy" in capsys.readouterr().out
    with pytest.raises(Problem, match="say --out_dir out/scratch"):
        reproduce.main(parse_args([*cell, "out/other"]))
    for broken in ("scratch_training", "scratch_tuning", "none"):
        with pytest.raises(Problem, match=f"results/{broken}.json holds no claim"):
            reproduce.main(parse_args([*cell, "out/scratch", "--results", f"results/{broken}"]))
    with pytest.raises(Problem, match="is not of a run with --mdlm_per_seed True: leave it out"):
        reproduce.main(parse_args([*cell, "out/scratch", "--mdlm_per_seed"]))

    curve = next(curve for curve in reproduce_config.CURVES if curve.name == "dsl/remdm")
    curve.grid.append({"top_p": 1.0})
    with pytest.raises(Problem, match="lacks settings, dsl/remdm with .* other models"):
        reproduce.main(parse_args(flags))


def test_a_tuning_from_scratch_is_for_models_from_scratch(toy, tmp_path, capsys):
    """Without --tuning the one rate of each way is trained on the thrown-away seed; what that leaves is refused where its rates are not."""
    _, ran = toy
    reproduce_config.CURVES[:] = [curve for curve in reproduce_config.CURVES if curve.path in ("ar", "remdm")]
    reproduce.main(parse_args([*FLAGS, "--list"]))
    assert "MDLMs they go on from, if from any" in capsys.readouterr().out and not ran
    reproduce.main(parse_args([*FLAGS, "--calls", "4", "16"]))
    folders = [command[command.index("--out_dir") + 1].split("/")[-1] for command in ran]
    assert folders[:5] == ["judge", "ar", "mdlm_more-lr1e-3", "masked-lr4e-3", "dsl-lr4e-3"] and len(ran) == 5 + 3 * 2
    with pytest.raises(Problem, match="is of models from scratch"):
        reproduce.main(parse_args("--data toy --tuning results/scratch_tuning.json --results results/x".split()))


def test_a_longer_fine_tuning_changes_its_length_and_rates_alone():
    same, flags = "--mdlm_per_seed --out_dir out/long".split(), "--fine_tune_steps 8000 --rates 1e-3 2e-3 3e-3".split()
    short, long = parse_args(same), parse_args([*same, *flags])
    rates = dict(zip(reproduce_config.WAYS, ("1e-3", "2e-3", "3e-3")))
    plans = [trainings(cfg, rates, cfg.training_seeds) for cfg in (short, long)]
    for name in plans[0].keys() | plans[1].keys():
        a, b = (vars(train_args(plan[name])) for plan in plans)
        assert {key for key in a if a[key] != b[key]} == ({"max_steps"} if name.split("-")[0] in rates else set())
    assert {train_args(argv).max_steps for name, argv in plans[1].items() if name.split("-")[0] in rates} == {8000}
    assert {f"{model}-lr{rate}" for model, rate in rates.items()} < trainings(long).keys() and len(trainings(long)) == 3 + 3


def test_the_dimension_of_the_sphere_is_of_dsl_alone():
    """The others are trained as ever; and a json from before there was the flag is of 32, as whose models its cell is drawn."""
    plans = [{name: train_args(argv) for name, argv in trainings(parse_args(["--d_embed", str(D)])).items()} for D in (32, 48)]
    assert {name for name in plans[0] if plans[0][name] != plans[1][name]} == {name for name in plans[0] if name.startswith("dsl-")}
    assert {(name.startswith("dsl-"), args.d_embed) for name, args in plans[1].items()} == {(True, 48), (False, 32)}
    before = {key: value for key, value in vars(parse_args([])).items() if key != "d_embed"}
    assert [reproduce_config.as_it_was(parse_args([]), before | now).d_embed for now in ({}, {"d_embed": 48})] == [32, 48]
    with pytest.raises(Problem, match="say --out_dir out/reproduce"):
        reproduce_config.as_it_was(parse_args(["--out_dir", "out/x"]), before)
    with pytest.raises(Problem, match="is not of a run with --d_embed 48: leave it out"):
        reproduce_config.as_it_was(parse_args(["--d_embed", "48"]), before)


def assert_a_tuning_goes_on_where_models_agree(folder, flags, longer, chose, ran):
    """Of all that a tuning says it is of, nothing may differ where it lacks a setting, and without --rates it is refused."""
    next(curve for curve in reproduce_config.CURVES if curve.name == "dsl/remdm").grid.append({"top_p": 1.0})
    mine = {"judge": json.loads((folder / "results" / "long.json").read_text())["judge"], "fine_tune_steps": 3,
            "d_embed": 128, "learning_rates": dict(zip(reproduce_config.WAYS, longer[3:]))}
    for other in ({"judge": "another"}, {"learning_rates": chose["learning_rates"]}, {"fine_tune_steps": 0},
                  {"d_embed": 32}):
        (folder / "tuning.json").write_text(json.dumps(chose | mine | other))
        with pytest.raises(Problem, match="lacks settings, dsl/remdm with .* other models"):
            reproduce.main(parse_args([*flags, *longer, "--tuning", "tuning.json", "--results", "results/x"]))
    (folder / "tuning.json").write_text(json.dumps(chose | mine))
    with pytest.raises(Problem, match="--scale cpu does not train all of these"):
        reproduce.main(parse_args([*flags, "--tuning", "tuning.json", "--results", "results/x"]))
    (folder / "tuning.json").write_text(json.dumps(chose | {"fine_tune_steps": 3}))
    with pytest.raises(Problem, match="whose rates are for those"):
        reproduce.main(parse_args([*flags, "--tuning", "tuning.json", "--results", "results/x"]))
    (folder / "tuning.json").write_text(json.dumps(chose | mine))
    reproduce.main(parse_args([*flags, *longer, "--tuning", "tuning.json", "--results", "results/x"]))
    tried = json.loads((folder / "results" / "x_tuning.json").read_text())["paths"]["dsl/remdm"]
    assert {"top_p": 1.0} in [e["setting"] for e in tried] and ran[-1][ran[-1].index("--out_dir") + 1] == "out/long/dsl-lr8e-3"


def test_the_whole_with_a_longer_fine_tuning(toy, tmp_path, capsys):
    """At the rates that were asked for, by the settings of a shorter one; its own tuning, and its numbers, are for none but itself."""
    _, ran = toy
    reproduce_config.CURVES[:] = [curve for curve in reproduce_config.CURVES if curve.path in ("ar", "remdm")]
    entry = {"setting": {}, "nll": 2.0, "temperature": 1.0}
    known = {curve.name: [{**entry, "T": T, "setting": setting} for setting in curve.grid for T in (8, 16, 32)]
             for curve in reproduce_config.CURVES}
    rates = dict.fromkeys(reproduce_config.WAYS, "1e-3")
    (tmp_path / "tuning.json").write_text(json.dumps({"learning_rates": rates, "paths": known, "judge": "another"}))
    flags = "--data toy --workers 1 --seeds 0 2 --calls 4 16 --out_dir out/long --results results/long".split()
    longer = "--fine_tune_steps 3 --rates 4e-3 2e-3 8e-3".split()
    reproduce.main(parse_args([*flags, *longer, "--tuning", "tuning.json"]))
    started = {args.out_dir.split("/")[-1]: (args.max_steps, args.lr) for args in (train_args(command[2:]) for command in ran)}
    assert started.keys() - {f"{model}-{seed}" for model in rates for seed in (0, 2)} == {"mdlm", "judge", "ar"}
    assert {name: of for name, of in started.items() if of[0] != 4} == {
        f"{model}-{seed}": (3, lr) for model, lr in (("mdlm_more", 4e-3), ("masked", 2e-3), ("dsl", 8e-3)) for seed in (0, 2)}
    assert json.loads((tmp_path / "results" / "long.json").read_text())["learning_rates"]["dsl"] == "8e-3"
    chose = json.loads((tmp_path / "results" / "long_tuning.json").read_text())
    assert (chose["learning_rates"], chose["fine_tune_steps"], chose["judge"]) == (rates, 0, "another")  # of the tuning that was named

    shutil.rmtree(tmp_path / "out" / "long" / "dsl-2")
    cell = "--data toy --workers 1 --results results/long --cell dsl/remdm/4 --out_dir".split()
    reproduce.main(parse_args([*cell, "out/long"]))
    assert "dsl/remdm/4: NLL at the data's entropy" in capsys.readouterr().out and len(ran) == 10
    assert {name: getattr(train_args(ran[-1][2:]), name) for name in ("max_steps", "lr")} == {"max_steps": 3, "lr": 8e-3}
    with pytest.raises(Problem, match="say --out_dir out/long"):
        reproduce.main(parse_args([*cell, "out/other"]))
    with pytest.raises(Problem, match="is not of a run with --fine_tune_steps 5: leave it out"):
        reproduce.main(parse_args([*cell, "out/long", "--fine_tune_steps", "5", *longer[2:]]))
    with pytest.raises(Problem, match="ckpt.pt was trained with --max_steps 3, not 5: choose another --out_dir"):
        reproduce.main(parse_args([*flags, "--fine_tune_steps", "5", *longer[2:], "--tuning", "tuning.json"]))
    with pytest.raises(Problem, match="dsl-0/ckpt.pt was trained with --d_embed 128, not 8: choose another --out_dir"):
        reproduce.main(parse_args([*flags, *longer, "--tuning", "tuning.json", "--d_embed", "8"]))

    assert_a_tuning_goes_on_where_models_agree(tmp_path, flags, longer, chose, ran)
