"""The command line. Each verb is a file: its flags, its action, its help. Most settings are lines of a recipe.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 some cell failed or some
record could not be read (the report is made of the others), 2 wrong usage, 130 interrupted, 143 terminated. Nothing
heavy is imported before a verb needs it.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from tpbench.cli import advise, claims, compare, export, listing, pack, profile, recipe, report, run, search, show, tune
from tpbench.cli.exit_codes import DONE, FAILED, INTERRUPTED, TERMINATED, WRONG, say
from tpbench.errors import CellFailed, UsageError

__all__ = ["DONE", "FAILED", "WRONG", "main"]

VERBS = {
    "run": run,
    "profile": profile,
    "tune": tune,
    "advise": advise,
    "search": search,
    "report": report,
    "compare": compare,
    "show": show,
    "export": export,
    "claims": claims,
    "pack": pack,
    "list": listing,
    "recipe": recipe,
}
# The user can fix these: a path that does not exist or cannot be written, or a full disk.
FOLDER_ERRORS = (
    errno.ENOENT,
    errno.ENAMETOOLONG,
    errno.EISDIR,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EEXIST,
)
CONTINUES = "finished cells are kept, the same command continues"
KEEP_CELLS = (run, search, show, tune)  # verbs whose jobs leave results that the next run uses


class Parser(argparse.ArgumentParser):
    """A parser that reports what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, so that a wrong request ends in one line and exit code 2."""
        raise UsageError(f"{message}; see {self.prog} --help")


class Terminated(SystemExit):
    """Raised on SIGTERM."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "7")  # must be set before torch is loaded
    before = None
    if threading.current_thread() is threading.main_thread():  # only there may Python set a handler
        before = signal.signal(signal.SIGTERM, terminate)
    arguments = None
    try:
        arguments = parser().parse_args(words)
        arguments.words = sys.argv[1:] if words is None else list(words)  # for the workers that `run` may start
        return arguments.act(arguments)
    except UsageError as error:
        return say(error, WRONG)
    except CellFailed as error:
        return say(error, FAILED)
    except KeyboardInterrupt:
        return say(stop_message("interrupted", arguments), INTERRUPTED)
    except Terminated:
        return say(stop_message("terminated", arguments), TERMINATED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        if error.errno not in FOLDER_ERRORS:
            raise
        code = FAILED if error.errno == errno.ENOSPC else WRONG
        return say(f"cannot write {error.filename or 'results'}: {error.strerror}", code)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def terminate(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    """Leave in the same way as after Ctrl-C, so that workers end and files stay complete."""
    raise Terminated(TERMINATED)


def stop_message(how: str, arguments: argparse.Namespace | None) -> str:
    """The last line of a command that a signal stopped, with what is kept."""
    if arguments is None:
        return how
    if arguments.act is profile.act:
        return f"{how}; {profile.kept_after_stop(arguments)}"
    return f"{how}; {CONTINUES}" if arguments.act in [verb.act for verb in KEEP_CELLS] else how


def parser() -> Parser:
    """The parser of the command line."""
    from tpbench import __version__

    top = Parser(prog="tpbench", description="Benchmark token reduction in vision transformers under one harness.")
    top.add_argument("--version", action="version", version=f"tpbench {__version__}")
    verbs = top.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    for name, module in VERBS.items():
        about = f"{module.HELP[0].upper()}{module.HELP[1:]}."
        verb = verbs.add_parser(name, help=module.HELP, description=about, epilog=f"example: {module.EXAMPLE}")
        verb.set_defaults(act=module.act)
        module.add_flags(verb)
    return top
