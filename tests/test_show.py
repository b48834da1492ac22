"""What a person sees: a line per state, frames that replace each other on a terminal and never break it, a diff, a trace."""

import io
import json
import os
import re
import shutil
from contextlib import closing
from math import inf
from types import SimpleNamespace

import pytest
import torch

from data import tokenizer
from show import GREEN, NOISE, RED_BLINKING, RED_STRUCK, Screen, Trace, diff, picture, printable, read_trace

TOK, MASK = tokenizer("bytes"), 257
HOSTILE = list(b"\x1b[2J\r\x07\x08\x9b\x00\x7f\tok\n") + [256]
ANSI = r"\x1b\[[0-9;]*[A-Za-z]"


def test_picture_shows_mask_noise_line_end_and_tokens():
    assert picture([*b"a\n", MASK, MASK, *b"b c"], [inf, inf, 0, 0.5, inf, inf, inf], TOK) == "a¶░▒b c"
    assert picture([MASK], torch.tensor([1e-30]), TOK) == "▒"
    assert picture(torch.tensor(list(b"tensor")), torch.full((6,), inf), TOK) == "tensor"
    assert picture(list("é".encode()), [inf] * 2, TOK) == "\ufffd\ufffd"


def test_no_control_character_reaches_the_terminal():
    assert picture(HOSTILE, [inf] * len(HOSTILE), TOK) == "·[2J···\ufffd·· ok¶<|endoftext|>"
    assert printable("a\x85b\u202ec\u2028d\u200be\u00a0f\ud800g日é") == "a·b·c·d·e f·g日é"  # C1, bidi override, line separator, zero width


class FakeTerminal(io.StringIO):
    """Obeys what Screen sends: line ends, cursor up, erase, colours; anything else is an error. A cell is (char, style)."""

    def __init__(self, columns, rows):
        super().__init__()
        self.columns, self.rows, self.grid, self.row, self.column = columns, rows, [[]], 0, 0
        self.style, self.frames = "", []

    def isatty(self):
        return True

    def write(self, text):
        self.frames += [text] if text else []
        for code, c in re.findall(r"(\x1b\[[0-9;]*[A-Za-z])|([^\x1b])", text, re.S):
            if c == "\n":
                self.row, self.column = self.row + 1, 0
                self.grid += [[]] * (self.row == len(self.grid))
            elif c:
                assert c.isprintable() and self.column < self.columns - 1
                self.grid[self.row][self.column : self.column + 1] = [(c, self.style)]
                self.column += 1
            elif code[-1] == "A":
                self.row, self.column = max(self.row - int(code[2:-1]), len(self.grid) - self.rows), self.column
                assert self.column == 0 and self.row >= 0
            elif code[-1] == "m":
                self.style = code[2:-1].removeprefix("0")
            elif code == "\x1b[K":
                del self.grid[self.row][self.column :]
            else:
                assert code == "\x1b[J" and self.column == 0
                self.grid[self.row :] = [[]]
        return len(text)

    def flush(self):
        self.flushed = len(self.frames)

    def lines(self):
        return ["".join(c for c, _ in row) for row in self.grid]

    def styled(self, style):
        return "".join(c for row in self.grid for c, s in row if s == style)


@pytest.fixture(params=[(80, 24), (40, 24)], ids=["80 columns", "40 columns"])
def terminal(request, monkeypatch):
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size(request.param))
    return FakeTerminal(*request.param)


TEXT = [*b"It was a dark and stormy night;\nthe rain fell in torrents, except at occasional intervals, when it was checked."]
CLEAN, HIDDEN, BLANK = [inf] * len(TEXT), [0.0] * len(TEXT), [MASK] * len(TEXT)


def expected(terminal, x, snr):
    shown, width = picture(x, snr, TOK), terminal.columns - 1
    return [shown[i : i + width] for i in range(0, len(shown), width)]


def test_frames_replace_each_other(terminal):
    terminal.write("$ a command\n")
    long = HOSTILE + [256] * 20 + TEXT[len(HOSTILE) + 20 :]  # EOS takes 13 columns
    states = [(BLANK, HIDDEN), (TEXT, CLEAN), (long, CLEAN), (TEXT, CLEAN), (TEXT[:9] + BLANK[9:], CLEAN[:9] + [2.0] + HIDDEN[10:])]
    with closing(Screen(TOK, 4.0, terminal)) as screen:
        for step, (x, snr) in enumerate(states):
            screen.show(step, 32, x, snr, torch.tensor(7 * step))
            assert terminal.flushed == step + 2
            up = re.match(r"\x1b\[(\d+)A", terminal.frames[-1])
            assert (int(up[1]) if up else 0) == (terminal.frames[-2].count("\n") if step else 0)  # all of the last frame, no line more
            assert all(len(line) <= terminal.columns for line in re.sub(ANSI, "", terminal.frames[-1]).splitlines())
            command, *lines, cursor = terminal.lines()
            head = 1 if terminal.columns == 80 else 2
            clean, masked = snr.count(inf), snr.count(0)
            counts = f"step {step}/32 clean {clean} noisy {len(x) - clean - masked} masked {masked} calls {7 * step}"
            assert (command, cursor) == ("$ a command", "") and " ".join(lines[:head]).split() == counts.split()
            if step < 4:  # the last state's blinking tokens still show their old text
                assert lines[head:] == expected(terminal, x, snr)
        assert lines[head:] == expected(terminal, TEXT, CLEAN)


def test_a_text_taller_than_the_terminal_is_cut_to_what_can_be_redrawn(terminal):
    screen = Screen(TOK, 4.0, terminal)
    lines = -(-20 * len(TEXT) // (terminal.columns - 1))
    head = 2 if terminal.columns == 40 else 1
    for step in range(3):
        screen.show(step, 32, TEXT * 20, CLEAN * 20, step)
        assert len(terminal.grid) == 24 and terminal.lines()[0].startswith(f"step {step}/32")
        assert terminal.lines()[-2] == f"… {lines + head - 22} more lines"
    with pytest.raises(ValueError):
        screen.show(3, 32, TEXT, CLEAN, 0)
    assert terminal.lines()[head:-2] == expected(terminal, TEXT * 20, CLEAN * 20)[: 22 - head]


def test_wide_characters_count_twice(terminal):
    wide = SimpleNamespace(decode=lambda ids: "日本")
    Screen(wide, 4.0, terminal).show(1, 2, [0] * 50, [inf] * 50, 1)
    assert max(map(len, terminal.lines()[-4:])) == (terminal.columns - 1) // 2


def test_colours_tell_what_happened(terminal):
    with closing(Screen(TOK, 4.0, terminal)) as screen:
        screen.show(0, 4, [*b"abcde", MASK], [inf] * 4 + [0, 1.0], 0)  # an id under a mask is nobody's business
        assert not terminal.styled(GREEN) and not terminal.styled(RED_BLINKING)  # nothing came before the first state
        assert terminal.styled("2") == "░" and terminal.styled(NOISE[0]) == "▒"
        screen.show(1, 4, [ord("a"), MASK, MASK, *b"Xe", MASK], [inf, 0, 9.0, inf, inf, 1e9], 1)
        assert terminal.styled(RED_BLINKING) == "bc"  # remasked or in noise again: with their old text
        assert terminal.styled(GREEN) == "Xe" and terminal.styled(NOISE[-1]) == "▒"
        assert terminal.lines()[-2] == "abcXe▒"
        screen.show(2, 4, [ord("a"), MASK, MASK, *b"Xe", MASK], [inf, 0, 9.0, inf, inf, 1e9], 1)
        assert terminal.lines()[-2] == "a░▒Xe▒" and not terminal.styled(RED_BLINKING) and not terminal.styled(GREEN)
        assert terminal.styled("2") == "░" and terminal.styled(NOISE[4]) == "▒"  # 9 / 4 t_c
        screen.show(3, 4, [ord("b"), MASK, MASK, *b"Xe", MASK], [inf, 0, 9.0, inf, inf, 1e9], 1)
        assert terminal.styled(GREEN) == "b"  # replaced by another
        screen.show(0, 4, [*b"Xe!", MASK], [inf] * 3 + [0], 0)  # the next block: another length, nothing revealed, nothing lost
        assert terminal.lines()[-2] == "Xe!░" and not terminal.styled(RED_BLINKING) and not terminal.styled(GREEN)


def test_every_frame_ends_without_colour_and_so_does_an_interruption(terminal):
    with pytest.raises(KeyboardInterrupt), closing(Screen(TOK, 4.0, terminal)) as screen:
        screen.show(0, 4, TEXT, CLEAN, 0)
        screen.show(1, 4, BLANK, HIDDEN, 1)
        for line in terminal.frames[-1].splitlines():
            assert len(re.findall(r"\x1b\[0m", line)) >= len(re.findall(r"\x1b\[[1-9][0-9;]*m", line))
        assert terminal.style == "" and terminal.styled(RED_BLINKING)
        terminal.write("\x1b[31;5mhalf a fra")
        raise KeyboardInterrupt
    assert terminal.style == ""


def test_hostile_tokens_cannot_move_the_cursor(terminal):
    screen = Screen(TOK, 4.0, terminal)
    screen.show(0, 2, HOSTILE, [inf] * len(HOSTILE), 0)  # FakeTerminal refuses control characters and unknown codes
    screen.show(1, 2, [MASK] * len(HOSTILE), [0] * len(HOSTILE), 1)
    assert terminal.styled(RED_BLINKING) == terminal.lines()[-2] == picture(HOSTILE, [inf] * len(HOSTILE), TOK)


def test_without_a_terminal_each_state_is_a_plain_line(capsys):
    with closing(Screen(TOK, 4.0)) as screen:
        screen.show(0, 12, BLANK[:4], HIDDEN[:4], 0)
        screen.show(12, 12, torch.tensor([*b"a\tb\n"]), torch.full((4,), inf), torch.tensor(12))
    assert capsys.readouterr().out == "   0  ░░░░\n  12  a b¶\n"


def test_diff_groups_adjacent_changes():
    before, after = [*b"the cat sat\nhere"], [*b"the dog sat there"]
    assert diff(before, before, TOK, False) == "the cat sat\nhere" == diff(before, before, TOK, True) and diff([], [], TOK, True) == ""
    with pytest.raises(ValueError):
        diff(before, after, TOK, False)
    before = torch.tensor([*b"the cat sat\nthere"])
    assert diff(before, after, TOK, False) == "the [-cat-]{+dog+} sat[-¶-]{+ +}there"
    coloured = diff(before, after, TOK, True)
    assert coloured == (f"the \x1b[{RED_STRUCK}mcat\x1b[0m\x1b[{GREEN}mdog\x1b[0m sat"
                        f"\x1b[{RED_STRUCK}m¶\x1b[0m\x1b[{GREEN}m \x1b[0mthere")
    assert re.sub(rf"\x1b\[{RED_STRUCK}m.*?\x1b\[0m|{ANSI}", "", coloured) == "the dog sat there"
    assert diff([*b"a b"], [*b"a\nb"], TOK, False) == "a[- -]{+¶\n+}b"
    assert diff([*b"a\x1bc"], [*b"a\rc"], TOK, False) == "a[-·-]{+·+}c"


def test_diff_does_not_cut_characters():
    assert diff([*"né".encode()], [*"nè".encode()], TOK, False) == "n[-é-]{+è+}"  # only the second byte differs
    assert diff([*"aé".encode()], [*b"aes"], TOK, False) == "a[-é-]{+es+}"
    assert diff([*"é日x".encode(), 256], [*"é日y".encode(), 256], TOK, False) == "é日[-x-]{+y+}<|endoftext|>"


def state(step, x, snr, samples=(3, 4), block=0):
    nfe, x, snr = torch.tensor([step, step + 1]), torch.tensor(x), torch.tensor(snr)
    return SimpleNamespace(samples=list(samples), block=block, step=step, nfe=nfe, x=x, snr=snr)


def test_trace_round_trip(tmp_path):
    path = tmp_path / "new" / "trace.jsonl"
    with closing(Trace(path)) as trace:
        trace.write(state(0, [[257, 257], [257, 257]], [[0.0, 0.0], [0.0, 0.0]]))
        assert len(list(read_trace(path))) == 2  # written as it goes
        trace.write(state(1, [[97, 257], [98, 257]], [[inf, 1.23456789], [inf, 3e-7]]))
        trace.write(state(0, [[257], [97]], [[0.0], [inf]], samples=(5, 6), block=64))
    rows = list(read_trace(path))
    assert [(r["index"], r["block"], r["step"], r["nfe"]) for r in rows] == [
        (3, 0, 0, 0), (4, 0, 0, 1), (3, 0, 1, 1), (4, 0, 1, 2), (5, 64, 0, 0), (6, 64, 0, 1)]
    assert [r["ids"] for r in rows[2:]] == [[97, 257], [98, 257], [257], [97]]
    assert [r["snr"] for r in rows[2:]] == [[inf, 1.235], [inf, 3e-7], [0], [inf]]
    strict = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]  # no Infinity, which is not json
    assert [r["snr"] for r in strict[2:]] == [[None, 1.235], [None, 3e-7], [0], [None]]


def test_trace_keeps_the_old_file_until_there_is_a_new_state(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text("old\n")
    with closing(Trace(path)) as trace:
        assert path.read_text() == "old\n"
    assert path.read_text() == "old\n"
    with closing(Trace(path)) as trace:
        trace.write(state(0, [[257], [257]], [[0.0], [0.0]]))
    assert "old" not in path.read_text()
    with open(path, "a") as f:
        f.write('{"index": 3, "st')  # killed while writing
    assert [row["index"] for row in read_trace(path)] == [3, 4]
