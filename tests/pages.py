"""README.md, the pages of results/ and their jsons, and how numbers are written there."""

import json
import re
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


def gain(a, b, digits=2):
    """How much lower b is than a, pair by pair, with the 95% interval by Student's t."""
    middle, half = claim.difference(a, b, paired=True)
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(middle, middle - half, middle + half, d=digits).replace("-", "−")


def told_ratio(at, digits=1, seeds="", ends=None):
    """A ratio of calls with, in brackets, those `by_seed`, where they are given, and its 95% interval, whose ends may have other digits."""
    low, high = (f"{x:.{ends or digits}f}" for x in at.get("student", at.get("interval")))
    return f"{at.get('ratio', at.get('geometric_mean')):.{digits}f} ({seeds}{seeds and '; '}{low} to {high})"


def under(text, heading=""):
    """The part of a text under a heading, up to the next one; without a heading, the first part."""
    return re.search(rf"^#+ {re.escape(heading) or '.*?'}\n(.*?)(?=^#+ |\Z)", text, re.M | re.S)[1]


def row_of(text, cell):
    """The row of a table whose first cell begins so."""
    return re.search(rf"^\| {re.escape(cell)}.*", text, re.M)[0]


def tells(text, *groups):
    """Whether one line of the text, so a paragraph, an item or a row, has these groups of numbers in this order. A group is written as
    "2.8 (2.3 to 3.7)" or "67, 80, 0.015": between its numbers any words may stand, but no other decimal; "a to b", "a ± b" and "> a" are as
    they are. ValueError for a group without a number, which any line would have."""
    number, other = r"−?\d+(?:\.\d+)?", r"(?:(?!\d\.\d).)*?"
    parts = [re.findall(rf"(?:[<>≤] )?{number}(?: (?:to|±) {number})?", group.replace("-", "−")) for group in groups]
    if not parts or not all(parts):
        raise ValueError(f"no number in one of {groups}")
    finds = [re.compile(other.join(rf"(?<![\d.,−])(?<![<>≤] ){re.escape(one)}(?![.,]?\d)" for one in part)) for part in parts]

    def has(line, at=0):
        for find in finds:
            found = find.search(line, at)
            if not found:
                return False
            at = found.end()
        return True

    return any(map(has, text.splitlines()))


def rows_below(text, header):
    """The cells of a Markdown table's rows, below each `header` in the text."""
    for table in text.split(header + "\n")[1:]:
        yield [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n\n")[0].splitlines()[1:]]


def claims(name):
    """A claim's json, and the head of the columns of its tables."""
    found = json.loads((ROOT / "results" / f"{name}.json").read_text())
    return found, f"T = {' | '.join(found['same_rule']['remdm'])} |"
