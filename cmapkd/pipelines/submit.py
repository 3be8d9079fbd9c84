"""Start the pipeline: on the site's cluster, here (--local), or only describe or compile it.

    python pipelines/submit.py --ablation no_alsn              compile, submit, print the run's link
    python pipelines/submit.py --recipe demo --local           the same tasks as processes of this machine
    python pipelines/submit.py --ablation no_alsn --dry-run    what would run
    python pipelines/submit.py --suite table4 --seeds 5        the recipes of one table with five seeds each
    python pipelines/submit.py --run RUN --only joint          one stage of an earlier run again
    python pipelines/submit.py --retry RUN                     what failed of a run again, as it was
    python pipelines/submit.py --schedule '0 2 * * 1'          a run every Monday at 2, on the data as it is then
    python pipelines/submit.py --verify [RUN]                  is what is stored as it was written? what to do where not
    python pipelines/submit.py --deliver RUN                   tell MLflow what it missed of a run while it was away
    python pipelines/submit.py --check                         is the site ready? each line ok or what to do

Exit codes: 0 done; 1 the run or a check failed, --verify found damage, or --deliver left something; 2 bad input; 3 the
endpoint does not answer or refuses; with --local the exit code of the stage that failed (docs/reference/exit-codes.md).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cmapkd.pipelines.site import CHECK_MINUTES
from cmapkd_core.command_line import Parser
from cmapkd_core.recipes import SUITES
from cmapkd_core.request import FLAGS, METAVARS, flag_of

SCRIPT = "python pipelines/submit.py"


def parser(prog: str = SCRIPT) -> argparse.ArgumentParser:
    """The command line; `prog` is what a person types for it."""
    cli = Parser(
        prog=prog,
        usage="%(prog)s [options]",
        description=(__doc__ or "").replace(SCRIPT, prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _what(cli.add_argument_group("what to run"))
    _where(cli.add_argument_group("where and how"))
    _again(cli.add_argument_group("part of an earlier run again"))
    _instead(cli.add_argument_group("in place of a start"))
    return cli


Group = argparse._ArgumentGroup  # argparse has no public name for it


def _string(group: Group, name: str) -> None:
    """A flag of the request's strings, which say themselves what they are."""
    group.add_argument(flag_of(name), default="", metavar=METAVARS.get(name), help=FLAGS[name])


def _what(group: Group) -> None:
    for name in ("recipe", "ablation"):
        _string(group, name)
    group.add_argument("--method", default="", metavar="NAME", help="a baseline, row of BASELINES")
    group.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="override one field; repeatable"
    )
    for name in ("data", "seed"):
        _string(group, name)
    group.add_argument("--suite", default="", metavar="NAME", help=f"all rows of a table: {', '.join(SUITES)}")
    group.add_argument("--seeds", default="", metavar="N", help="number of a suite's seeds; default: 5")
    group.add_argument(
        "--expectations", action="store_const", const="yes", default="", help="the paper's numbers in a suite's report"
    )


def _where(group: Group) -> None:
    group.add_argument("--local", action="store_true", help="run here, task by task, and not on the site's cluster")
    for name in ("root", "run"):
        _string(group, name)
    group.add_argument("--site", default="", metavar="FILE", help="site file; default: site.toml where there is one")
    group.add_argument("--wait", action="store_true", help="follow the run; the exit code tells its success")
    group.add_argument(
        "--parallel",
        default="",
        metavar="N",
        help="tasks at a time, here or of a suite; default: 1 here, else the site's",
    )


def _again(group: Group) -> None:
    part = group.add_mutually_exclusive_group()
    part.add_argument("--only", default="", metavar="STAGE", help="one stage of the earlier run --run again")
    part.add_argument("--from-stage", default="", metavar="STAGE", help="that stage and what follows from it")


def _instead(group: Group) -> None:
    mode = group.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="print what would run and stop")
    mode.add_argument("--compile-only", default="", metavar="OUT.yaml", help="write the package and stop")
    mode.add_argument("--retry", default="", metavar="RUN", help="run what failed again: the run's name or id")
    mode.add_argument(
        "--verify", nargs="?", const="", metavar="RUN", help="check the stored files of a run, or of all below the root"
    )
    mode.add_argument("--deliver", default="", metavar="RUN", help="tell MLflow what it missed of a run's stages")
    _string(group, "tracking_uri")
    mode.add_argument("--schedule", default="", metavar="CRON", help="start such a run again and again")
    mode.add_argument(
        "--check",
        nargs="?",
        type=minutes,
        const=CHECK_MINUTES,
        metavar="MINUTES",
        help=f"try the site; its run in the cluster may take {CHECK_MINUTES:g} minutes or as many as given",
    )


def minutes(text: str) -> float:
    """A time in minutes; argparse says what is wrong with another text."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 24 * 60:
        raise argparse.ArgumentTypeError(f"{text}: a number of minutes, such as 30, and less than a day")
    return value


def main(argv: Sequence[str] | None = None, prog: str = SCRIPT) -> int:
    """The command; returns its exit code. prog: as of `parser`."""
    command = list(sys.argv[1:] if argv is None else argv)
    args = parser(prog).parse_args(command)
    from cmapkd.pipelines.start import obey  # with KFP's SDK, which takes longer than to read or to explain a command

    return obey(args, command)


if __name__ == "__main__":
    sys.exit(main())
