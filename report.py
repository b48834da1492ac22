"""What a measurement leaves behind: a table to read, a json that says how it came about, a figure."""

import json

from config import optional, provenance, whole_file


def cell(value, digits=3):
    """A number, a [value, error] or None as text."""
    if value is None:
        return "-"
    if isinstance(value, (list, tuple)):
        return cell(value[0], digits) + (f" +- {value[1]:.{digits}f}" if value[1] is not None else "")
    return f"{value:.{digits}f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def table(header, rows):
    """Aligned columns as one str: the first flush left, the others right. header and rows hold anything `cell` can print."""
    lines = [[cell(value) for value in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(line[1:], widths[1:]))]).rstrip()
                     for line in lines)


def plain(value):
    """nan is no json: it becomes null."""
    if isinstance(value, dict):
        return {name: plain(x) for name, x in value.items()}
    return [plain(x) for x in value] if isinstance(value, (list, tuple)) else None if value != value else value


def save_json(path, **numbers):
    """Write numbers, with the command and the commit that made them, to a json, whole or not at all."""
    with whole_file(path) as f:
        f.write(f"{json.dumps(plain({**provenance(), **numbers}), indent=1, allow_nan=False)}\n".encode())
    print(f"saved {path}")


def pyplot():
    """matplotlib.pyplot, drawing to files only. Raises Problem when matplotlib is not installed."""
    optional("matplotlib").use("Agg")
    return optional("matplotlib.pyplot")


def save_figure(path, figure):
    """Write a matplotlib figure, whole or not at all, and close it; the ending of `path` names its format."""
    with whole_file(path) as f:
        figure.savefig(f, format=str(path).rsplit(".", 1)[-1], dpi=150)
    pyplot().close(figure)
    print(f"saved {path}")
