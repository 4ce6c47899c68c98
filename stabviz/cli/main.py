"""The command line: fine-tune a model, look into runs, train a grid of small models, and check the set-up."""

import contextlib
import io
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from stabviz.cli import course, diagnose, lab, read, train
from stabviz.cli.lab import INTERRUPTED

COMMANDS: dict[type, Any] = (
    train.COMMANDS | read.COMMANDS | diagnose.COMMANDS | lab.COMMANDS | course.COMMANDS
)
"""What a command's options are -> the function that takes them and returns the exit status."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status; what the caller got wrong is one line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "STABVIZ_HOME" not in os.environ and Path("notebooks").is_dir():
        os.environ["STABVIZ_HOME"] = os.path.join("notebooks", ".stabviz")  # where the notebooks keep it
    try:
        command = parsed(arguments)
        return COMMANDS[type(command)](command)
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith(("stream:", "finetune:")):
            raise  # not the caller's doing: the traceback says where to look
        print(f"error: {error}", file=sys.stderr)
        return train.exit_code(error)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return INTERRUPTED


def parsed(arguments: list[str]) -> Any:
    """Read the flags; what a config's own checks refuse is an error of one line, not the parser's box."""
    start = train.Finetune(run=train.with_config_file(arguments))
    commands = [
        Annotated[kind, tyro.conf.subcommand(kind.__name__.lower(), default=start)]
        if kind is train.Finetune
        else Annotated[kind, tyro.conf.subcommand(kind.__name__.lower())]
        for kind in COMMANDS
    ]
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            # a union that is put together here, which a type checker cannot follow
            union: Any = Union[tuple(commands)]  # noqa: UP007
            return tyro.cli(union, prog="python -m stabviz", description=__doc__, args=arguments)
    except SystemExit:
        words = " ".join(re.sub("[│╭╮╰╯─]", " ", errors.getvalue()).split())
        refused = re.search(r"\w+Config: .*?(?= For full helptext|$)", words)
        if refused:
            raise ValueError(refused.group()) from None
        unknown = re.search(r"Unrecognized options: (.*?)(?= For full helptext|$)", words)
        if unknown and arguments[:1] == ["finetune"]:
            raise ValueError(train.unknown_flags(unknown.group(1))) from None
        sys.stderr.write(errors.getvalue())
        raise
