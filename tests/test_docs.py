"""What the README promises: every command parses, every script explains itself, every json says how it came about; and files stay short."""

import ast
import functools
import importlib
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from pages import README, RESULTS, ROOT

from config import provenance

SCRIPTS = [p for p in sorted(ROOT.glob("*.py")) if '\nif __name__ == "__main__":' in p.read_text()]
SOURCES = sorted(ROOT.glob("*.py"))


def commands_in(text):
    """Every `python SCRIPT ...` or `torchrun ... SCRIPT ...` of a text, as (script, flags)."""
    for line in text.replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|;|\|", line):
            found = re.search(r"(?:python3?|torchrun)\s.*?(\w+\.py)(.*)", command.split(" #")[0])
            if found and (ROOT / found[1]).exists():
                yield found[1], found[2].strip()


def commands():
    """Those of the README's code blocks and of the Makefile."""
    kinds = "", "D=32", "FROM_SCRATCH=1", "LONG=1", "TEXTS=99", "SEEDS='3 4 5'", "SEEDS='0 3'"
    goals = ["demo results evaluate bench bench_gpu ablations", *(f"reproduce {of}" for of in kinds)]
    asked = {"ALL", "D", "FROM_SCRATCH", "LONG", "SEEDS", "TEXTS", "MAKEFLAGS", "MFLAGS", "MAKELEVEL"}
    plain = {key: value for key, value in os.environ.items() if key not in asked}
    make = [subprocess.run(["make", "-nB", *shlex.split(of), "TEXT=prose.txt"], cwd=ROOT, env=plain, capture_output=True, text=True,
                           check=True).stdout for of in goals]
    return commands_in("\n".join([*re.findall(r"```(?:sh|bash)\n(.*?)```", README, re.S), *make]))


def usages():
    """Those that the scripts' docstrings show, indented, what stands apart from them being a comment."""
    for path in SOURCES:
        lines = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
        yield from commands_in("\n".join(re.sub(r"(\S)\s{3}.*", r"\1", line) for line in lines if line.startswith(" ")))


def test_the_readme_holds_commands():
    found = set(commands())
    assert {"prepare_owt.py", "train.py", "sampler.py", "eval_mauve.py", "analyze.py"} <= {script for script, _ in found}
    runs = {flags for script, flags in found if script == "reproduce.py" and "gpu" not in flags}
    sooner = {flags for flags in runs if flags.startswith("--calls 4 8 16 32 64 ")}  # each kind is begun with these T, and ended with all
    assert {" ".join(flags.split()[6:]) for flags in sooner} == {" ".join(flags.split()) for flags in runs - sooner}
    assert sorted(re.findall("--mdlm_per_seed|--from_scratch|--fine_tune_steps|--texts", flags) for flags in sooner) == [
        [], ["--from_scratch"], *4 * [["--mdlm_per_seed"]], ["--mdlm_per_seed", "--fine_tune_steps"], ["--mdlm_per_seed", "--texts"]]
    dimensions = {re.search(r"--results results/claim(\w*)", flags)[1]: re.search(r"--d_embed (\d+)", flags)[1] for flags in sooner}
    for script, flags in found:
        if script == "analyze.py" and (run := re.search(r"--out results/claim_D128(_again|_seeds_0_3)?_c", flags)):  # of its seeds
            seeds = {"_again": "345", "_seeds_0_3": "03"}.get(run[1], "012")
            assert sorted(re.findall(r"/(\w+-\d)/ckpt", flags)) == [f"{who}-{n}" for who in ("dsl", "masked", "mdlm_more") for n in seeds]
    of_32, of_128 = ("", "_long", "_D32"), ("_D128", "_D128_again", "_D128_seeds_0_3", "_scratch_D128")
    assert dimensions == dict.fromkeys(of_32, "32") | dict.fromkeys(of_128, "128")  # as their jsons were made


@pytest.mark.parametrize("script, flags", sorted({*commands(), *usages()}))
def test_readme_command_parses(script, flags):
    assert importlib.import_module(script[:-3]).parse_args(shlex.split(flags))  # a bad flag would be a SystemExit


def test_the_functions_and_tests_of_the_readme_s_equations_are_there():
    """A name without a module is beside the one before it."""
    rows, home = re.findall(r"^\| .* \| (`.*`) \| `(test_\w+)` \|$", README, re.M), []
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for functions, test in rows:
        for name in re.findall(r"`([\w.]+)`", functions):
            *where, last = name.split(".")
            home = where or home
            assert hasattr(functools.reduce(getattr, home[1:], importlib.import_module(home[0])), last), name
        assert f"def {test}(" in tests, test
    assert len(rows) > 12


def test_an_interrupted_make_keeps_the_texts_that_are_there(tmp_path):
    """make deletes what it was making when a signal comes, unless told not to."""
    texts, python = tmp_path / "out/eval/remdm-1.jsonl", tmp_path / "python"
    texts.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho one > {texts}\nsleep 60\n")
    python.chmod(0o755)
    plain = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    make = subprocess.Popen(["make", "-f", ROOT / "Makefile", "-o", "out/demo/ckpt.pt", f"BIN={tmp_path}/", "out/eval/remdm-1.jsonl"],
                            cwd=tmp_path, env=plain, start_new_session=True)
    while make.poll() is None and not (texts.exists() and texts.read_text()):
        time.sleep(0.05)
    os.killpg(make.pid, signal.SIGTERM)
    assert make.wait(30) != 0 and texts.read_text() == "one\n"


def test_readme_s_batches_divide_among_its_processes():
    lines = re.findall(r"^torchrun (.*) train\.py(.*?)(?: #|$)", README, re.M)
    assert len(lines) > 5
    for how, flags in lines:
        cfg = importlib.import_module("train").parse_args(shlex.split(flags))
        processes = math.prod(map(int, re.findall(r"--n(?:nodes|proc_per_node)=(\d+)", how)))
        assert cfg.batch_size % (processes * (cfg.micro_batch or 1)) == 0, (how, flags)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_help_works_without_data_and_a_typo_before_any_heavy_import(script, tmp_path):
    shown = subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0 and "--" in shown.stdout and not shown.stderr
    no_torch = "import sys, runpy; sys.modules['torch'] = None; sys.argv = ['x', '--no_such_flag']; "
    typo = subprocess.run([sys.executable, "-c", f"{no_torch}runpy.run_path({str(script)!r}, run_name='__main__')"], cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert typo.returncode == 2 and typo.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_every_result_says_how_it_came_about():
    results = sorted((ROOT / "results").glob("*.json"))
    assert results
    for path in results:
        result = json.loads(path.read_text())
        assert {"command", "commit"} <= result.keys(), path.name
        assert not result["commit"].endswith("+"), f"{path.name} was made with uncommitted changes"
    for name in re.findall(r"results/[\w./-]+\.\w+", README) + [f"results/{name}" for name in re.findall(r"`(claim_\w+\.json)`", README)]:
        assert (ROOT / name).exists(), name


def test_results_that_are_told_are_those_that_are_there():
    """results/*.md name, in backticks or as links, all files of the folder and no other; they and README link to headings that exist."""
    there = {path.name for path in (ROOT / "results").iterdir()} - {"README.md"}
    text = "\n".join(RESULTS.values())
    assert there == {name.rstrip("/") for name in re.findall(r"`(\w+(?:\.json|_logs/))`", text) + re.findall(r"\]\((\w+\.\w+)", text)}
    for here, page in [*RESULTS.items(), ("", README)]:
        for other, heading in re.findall(r"\]\((?:(?:results/)?(\w+)\.md)?#([^)]+)\)", page):
            headings = re.findall(r"^#+ (.*)", RESULTS[other] if other else page, re.M)
            assert heading in [re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in headings], (here, other, heading)


def test_results_name_no_place_on_somebody_s_machine():
    files = [path for path in (ROOT / "results").rglob("*") if path.suffix in (".json", ".jsonl")]
    assert len(files) > 50 and not [path.name for path in files if re.search(r'"python /|"/[a-z]+/', path.read_text())]


def test_a_command_is_told_as_it_is_typed_in_the_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for script, told in ((ROOT / "train.py", "train.py"), (ROOT / "tests/tv_steps.py", "tests/tv_steps.py"), (tmp_path / "x.py", "x.py")):
        monkeypatch.setattr(sys, "argv", [str(script), "--seed", "1"])
        assert provenance.__wrapped__()["command"] == f"python {told} --seed 1"


def test_files_fit_a_sitting_and_functions_a_screen():
    for path in [*SOURCES, *sorted((ROOT / "tests").glob("*.py")), ROOT / "README.md"]:
        text = path.read_text()
        assert text.count("\n") <= (350 if path.suffix == ".py" else 400), path.name
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 45, f"{path.name}: {node.name}"


def test_imports_make_no_cycle():
    names = {p.stem for p in SOURCES}
    edges = {}
    for path in SOURCES:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        edges[path.stem] = names & (plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom)})
    for name, said in re.findall(r"^\| `(\w+)\.py` \|.*\| (.*) \|$", README, re.M):
        assert set(re.findall(r"`(\w+)`", said)) <= edges[name], f"README's table of files: {name}"
    while edges:
        leaves = {name for name, needs in edges.items() if not needs}
        assert leaves, f"import cycle among {sorted(edges)}"
        edges = {name: needs - leaves for name, needs in edges.items() if name not in leaves}
