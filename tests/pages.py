"""README.md, the pages of results/ and their jsons, and how numbers are written there."""

import json
from pathlib import Path

import claim

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
RESULTS = {path.stem: path.read_text() for path in sorted((ROOT / "results").glob("*.md"))}


MODELS = {"MDLM": "mdlm", "MDLM continued": "mdlm_more", "control": "masked", "the control": "masked", "DSL": "dsl"}


def value(pair, digits=2):
    return "-" if pair[0] is None else " ± ".join(f"{x:.{digits}f}" for x in pair if x is not None).replace("-", "−")


def times(found, ratio, T=8, bound=""):
    """How many times T calls, as far as the run of a claim went, or 128 calls, beyond which there are few texts, or, with a `bound`, as far
    as is known of that seed. A path may end a call or so short of T, so that what is not reached stands at a little less than the longest
    run. The shortest may be more than is needed."""
    shortest, *_, longest = sorted(min(128, int(T)) for T in found["same_rule"]["remdm"])
    if ratio < 1.01 * shortest / int(T):
        return f"≤ {shortest / int(T):.1f}"
    if ratio >= 0.99 * longest / int(T):
        return f"> {longest // int(T)}"
    return f"> {ratio:.0f}" if bound == ">" else f"{ratio:.1f}"


def by_seed(found, at, T=8):
    """The `times` of each seed, from what claim.ratio_report says at T."""
    return ", ".join(times(found, ratio, T, bound) for ratio, bound in zip(at["by_seed"], at["bounds"], strict=True))


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
