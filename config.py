"""Flags from a dataclass: field name = flag = attribute. Standard library only, so a typo costs 50 ms and not an import of torch."""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import os
import shlex
import subprocess
import sys
import typing
from pathlib import Path


class Problem(Exception):
    """Something the user can mend. Its text is one sentence that says what to do; `run` prints it and exits with 1."""


def arg(default, help, choices=None, positional=False):
    """A dataclass field that becomes a flag (or, with `positional`, a positional argument)."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "positional": positional})


def parse(cls, argv=None, presets=None, description=None):
    """Build the frozen dataclass `cls` from `argv` (default: the command line).

    `presets` maps a name to the fields it sets; `--preset NAME` chooses one and any flag overrides it. A bool becomes
    --name / --no-name, a tuple takes several values. A bad flag, type, choice or combination (a ValueError from the class's own
    __post_init__) is a one-line usage error with exit status 2.
    """
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    hints, chosen = typing.get_type_hints(cls), {}
    if presets:
        standard = next(f.default for f in dataclasses.fields(cls) if f.name == "preset")
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--preset", nargs="?", default=standard)
        chosen = presets.get(first.parse_known_args(argv)[0].preset, {})  # so that --help tells the defaults of the one that is asked for
    for f in dataclasses.fields(cls):
        kind, options = hints[f.name], {"help": f.metadata["help"].replace("%", "%%")}
        default = chosen.get(f.name, f.default)  # what a bare command line would use
        if default not in (None, "", ()):
            options["help"] += f" (default: {default})"
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(kind) is tuple:
            options |= {"nargs": "+", "type": typing.get_args(kind)[0], "metavar": f.name.upper()}
        else:
            options |= {"type": kind, "choices": f.metadata["choices"]}
            if not f.metadata["choices"]:
                options["metavar"] = f.name.upper()
        parser.add_argument(f.name if f.metadata["positional"] else f"--{f.name}", default=argparse.SUPPRESS, **options)

    def usage_error(message):
        sys.stderr.write(f"{parser.prog}: {message} (see --help)\n")
        sys.exit(2)

    parser.error = usage_error  # one line, not the whole usage
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(parser.parse_args(argv)).items()}
    if presets:
        given = chosen | given
    try:
        if any(value != value for value in given.values()):
            raise ValueError("nan is no setting")
        return cls(**given)
    except (TypeError, ValueError) as error:
        usage_error(str(error))


@functools.cache
def provenance():
    """How a number came about: the command line, as it is typed in the repository, and the commit, as of the first call. None without git;
    + marks uncommitted changes outside results/, which a run may be writing."""
    where, script = Path(__file__).resolve().parent, Path(sys.argv[0]).resolve()  # the code's repository, wherever it is called from
    script = script.relative_to(where) if script.is_relative_to(where) else script.name

    def git(*args):
        return subprocess.run(["git", *args], cwd=where, capture_output=True, text=True, check=False).stdout.strip()

    try:
        commit, changes = git("rev-parse", "--short", "HEAD"), git("status", "--porcelain", "-uno", "--", ".", ":!results")
    except FileNotFoundError:
        commit, changes = "", ""
    return {"command": shlex.join(["python", str(script), *sys.argv[1:]]), "commit": commit + "+" * bool(changes) if commit else None}


def writable(path):
    """The Path of a file to write, its folder made. Raises Problem for what is no plain file, or in a read-only folder:
    better before the work than after it."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise Problem(f"{path} is no plain file: name another")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise Problem(f"{path} cannot be written, its folder is read-only: name another")
    return path


@contextlib.contextmanager
def whole_file(path):
    """Open a file for writing bytes that takes the name `path` only when all of it is written and flushed.

    Whatever happens meanwhile, a kill or a full disk, `path` is afterwards the old file or the new one, never half of one. One process
    at a time may write a path.
    """
    path = writable(path)
    temporary = path.with_name(f".{path.name}.partial")  # one name, so that a killed run leaves one file, not many
    try:
        with open(temporary, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def optional(module):
    """Import a package that only some uses need; when it is missing, the Problem names the pip line."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise Problem(f"this needs a package that is not installed: pip install {module.split('.')[0]}") from None


def out_of_memory(error):
    """Whether a RuntimeError of torch says so: a GPU's has a class of its own, a CPU's allocator's has none."""
    said = "can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in said)


def run(main):
    """Call `main()`; a Problem, a want of memory or an operating-system error (disk full, no permission) becomes one line and exit
    status 1."""
    with contextlib.suppress(AttributeError):  # without a terminal
        sys.stdout.reconfigure(errors="replace")  # texts may hold what it cannot show
    try:
        provenance()  # of the code as it is now, not when the first number is there
        return main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Problem as problem:
        message = str(problem)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not out_of_memory(error):
            raise
        message = "out of memory: lower --micro_batch in training, else --batch_size, which change no result, or --length"
    except OSError as error:
        message = f"{error.strerror}: {error.filename or 'while writing'}" if error.strerror else str(error)
    rank = os.environ.get("RANK", "0")
    sys.exit(f"error: {message}" if rank == "0" else f"[process {rank}] error: {message}")
