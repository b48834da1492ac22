"""Look at texts on their way: a line per state, a terminal redrawn in place, a coloured diff, and a trace to read back later.

Ids x (L,) and snr (L,), 0 for [MASK], inf for clean, noise between, are lists or tensors; tok is a tiktoken.Encoding. A byte that is no
character alone shows as a replacement character; a clean id that tok lacks is a KeyError."""

import itertools
import json
import math
import shutil
import sys
import textwrap
import unicodedata
from pathlib import Path

RED_BLINKING, RED_STRUCK, GREEN, DIM = "31;5", "31;9", "32", "2"  # ANSI's "select graphic rendition"
NOISE = [f"38;5;{colour}" for colour in (60, 61, 68, 74, 80, 123)]  # slate to bright cyan, one for each half t_c


def listed(values):
    return values.tolist() if hasattr(values, "tolist") else list(values)


def printable(text):
    """`text` without what moves a cursor or switches a terminal's mode: tabs and odd spaces become a space, the rest ·; \\n stays."""
    return "".join(" " if c == "\t" or unicodedata.category(c) == "Zs" else c if c.isprintable() or c == "\n" else "·" for c in text)


def paint(style, text):
    return f"\x1b[{style}m{text}\x1b[0m" if style else text


def picture(x, snr, tok):
    """One text as one line (str): ░ for [MASK], ▒ for a token in noise, ¶ for a line end, · for another control character."""
    shown = ["░" if s == 0 else "▒" if s < math.inf else printable(tok.decode([token])) for token, s in zip(listed(x), listed(snr))]
    return "".join(shown).replace("\n", "¶")


def wrap(cells, width):
    """(style, text) of each token -> painted lines of at most `width` columns, broken anywhere, so that words do not jump."""
    lines, left = [""], width
    for style, c in ((style, c) for style, text in cells for c in text):
        columns = 2 if unicodedata.east_asian_width(c) in "WF" else 1  # an accent counts too: rather a short line than a long one
        if columns > left:
            lines, left = [*lines, ""], width
        lines[-1], left = lines[-1] + paint(style, c), left - columns
    return lines


class Screen:
    """One text while it takes shape: redrawn in place on a terminal, a line per state elsewhere (stream: default sys.stdout).

    Masked tokens are dim, noise is slate to cyan by snr / t_c, tokens revealed since the last state are green, clean ones plain. A token
    that was clean and is not any more blinks red for one state, with its old text. Use `with contextlib.closing(Screen(...)) as screen`."""

    def __init__(self, tok, t_c, stream=None):
        self.tok, self.t_c, self.stream = tok, float(t_c), stream or sys.stdout
        self.before, self.height = None, 0  # ids and SNRs of the last state; lines that it took

    def show(self, step, T, x, snr, nfe):
        """Draw the state after `step` of T steps: ids x (L,), snr (L,), and nfe network calls so far. ValueError: L changed at step > 0."""
        x, snr, self.before = listed(x), listed(snr), self.before if step else None  # step 0 begins another text
        shown = self.frame(step, T, x, snr, nfe) if self.stream.isatty() else f"{step:4d}  {picture(x, snr, self.tok)}\n"
        print(shown, end="", file=self.stream, flush=True)
        self.before = x, snr

    def frame(self, step, T, x, snr, nfe):
        """What draws one state over the last one: a header, and as much of the text as the terminal holds."""
        columns, rows = shutil.get_terminal_size()
        width, room = max(2, columns - 1), max(2, rows - 1)  # \x1b[K would eat a full last column; the cursor waits on the last row
        clean, masked = snr.count(math.inf), snr.count(0)
        header = f"step {step}/{T}  clean {clean}  noisy {len(x) - clean - masked}  masked {masked}  calls {nfe}"
        lines = textwrap.wrap(header, width) + wrap(self.cells(x, snr), width)
        if len(lines) > room:
            lines[room - 1 :] = [f"… {len(lines) - room + 1} more lines"[:width]]
        up, self.height = f"\x1b[{self.height}A" if self.height else "", len(lines)
        return up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[0m\x1b[J"  # K and J erase what the last frame had more

    def cells(self, x, snr):
        """(style, text) of each token, given the last state."""
        for token, s, old, s_old in zip(x, snr, *(self.before or (x, snr)), strict=True):
            if s_old == math.inf != s:
                yield RED_BLINKING, picture([old], [s_old], self.tok)
            elif s == math.inf:
                yield GREEN if s_old != s or token != old else "", picture([token], [s], self.tok)
            else:
                yield NOISE[min(int(2 * s / self.t_c), len(NOISE) - 1)] if s else DIM, picture([token], [s], self.tok)

    def close(self):
        """Give a terminal its own colours back, wherever a Ctrl-C struck."""
        print("\x1b[0m" if self.stream.isatty() else "", end="", file=self.stream, flush=True)


def diff(before, after, tok, colour):
    """What changed between two texts of ids (L,) -> str: [-old-]{+new+}, or with `colour` old struck through in red and new in green.
    Adjacent changes are one group; it cuts no character that spans tokens and shows a line end as ¶. ValueError: the lengths differ."""
    pieces, shown = [], ""  # a piece: (old, new) ids from one place where both texts begin a character to the next
    for pair in zip(listed(before), listed(after), strict=True):
        if not pieces or all(tok.decode_single_token_bytes(token)[0] & 0xC0 != 0x80 for token in pair):  # UTF-8: 10xxxxxx continues
            pieces.append([])
        pieces[-1].append(pair)
    for changed, run in itertools.groupby(pieces, lambda piece: any(old != new for old, new in piece)):
        old, new = (printable(tok.decode(ids)) for ids in zip(*itertools.chain.from_iterable(run)))
        if changed:
            old, new = old.replace("\n", "¶"), new.replace("\n", "¶\n")
            new = paint(RED_STRUCK, old) + paint(GREEN, new) if colour else f"[-{old}-]{{+{new}+}}"
        shown += new
    return shown


class Trace:
    """All states of all texts as json lines in `path`, for `read_trace`; an old file stays until the first state arrives; then close().

    A line: index of the sample, block (where in the text its L tokens begin), step (0: at the start), nfe (of this block), ids (L,),
    snr (L,) to 4 digits, null for clean and 0 for [MASK]."""

    def __init__(self, path):
        self.path, self.file = Path(path), None

    def write(self, state):
        """Append the texts of `state` (samples, block, step, nfe (B,), x (B,L), snr (B,L)). OSError: disk full, no permission."""
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "w", buffering=1)  # by line: a run that is killed leaves all its states but perhaps the last
        for index, nfe, ids, snr in zip(state.samples, listed(state.nfe), listed(state.x), listed(state.snr)):
            snr = [None if s == math.inf else float(f"{s:.4g}") or 0 for s in snr]  # json knows no inf; 0 is shorter than 0.0
            row = {"index": index, "block": state.block, "step": state.step, "nfe": nfe, "ids": ids, "snr": snr}
            self.file.write(json.dumps(row, separators=(",", ":")) + "\n")

    def close(self):
        """Close the file, if there was a state to write."""
        if self.file:
            self.file.close()


def read_trace(path):
    """Yield the lines of a Trace as dicts, snr inf where clean; not a last line that a kill cut short. ValueError, KeyError: no trace."""
    with open(path) as f:
        for row in (json.loads(line) for line in f if line.endswith("\n")):
            yield row | {"snr": [math.inf if s is None else s for s in row["snr"]]}
