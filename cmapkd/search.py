"""Find the pictures of a folder that fit some words, or that are like a picture, with an exported student.

    cmapkd search MODEL FOLDER "a red mug"                        the nearest pictures as a table
    cmapkd search MODEL FOLDER "a red mug" --html nearest.html    and as a page with pictures
    cmapkd search MODEL FOLDER --like cup.jpg                     pictures like that one
    cmapkd search MODEL FOLDER --serve --teacher its-own          a page to type in: student and teacher side by side

Embeddings are kept in the user's cache folder (--cache), by the model and each file's path, time and size: the second
search embeds what is new. Exit codes as of every command: 0 done, 2 bad input (docs/reference/exit-codes.md).
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cmapkd.searching import MOST
from cmapkd_core.command_line import Parser, until_enough
from cmapkd_core.errors import InputError
from cmapkd_core.exits import ENDS, end_of, room
from cmapkd_core.storage.user_cache import user_cache

if TYPE_CHECKING:
    from cmapkd.searching.nearest_page import Asked, Column
    from cmapkd.searching.page_server import Side
    from cmapkd.searching.picture_folder import PictureFile

PORT, TOP = 8000, 5
_BROKEN = 10  # pictures that cannot be read and are named


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = Parser(prog="cmapkd search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument(
        "model",
        metavar="MODEL",
        help="an export's folder or s3:// URL, as a run prints it; the artifact of a stage that trains; or a model by "
        "name, such as ViT-B-32:openai",
    )
    cli.add_argument(
        "folder",
        metavar="FOLDER",
        help="a folder with pictures, its subfolders too; or a prepared data set, ROOT/prepare/KEY, here or on s3://",
    )
    cli.add_argument("query", metavar="QUERY", nargs="*", help="words of one query")
    cli.add_argument("--like", type=Path, metavar="PICTURE", help="a picture in place of words")
    cli.add_argument(
        "--top", type=_top, default=TOP, metavar="N", help=f"how many pictures, 1 to {MOST}; default: {TOP}"
    )
    cli.add_argument("--html", type=Path, metavar="OUT.html", help="write a page with the pictures, one file")
    cli.add_argument("--show", action="store_true", help="open the page in the browser")
    cli.add_argument(
        "--teacher",
        default="",
        metavar="MODEL2",
        help="a second model to compare with, written as MODEL; its-own: the one that the student learned from",
    )
    cli.add_argument(
        "--serve",
        nargs="?",
        type=_port,
        const=PORT,
        metavar="PORT",
        help=f"a page on this machine to type queries in, until Ctrl-C; default port: {PORT}, 0 takes a free one",
    )
    cli.add_argument(
        "--host", default="127.0.0.1", help="address to serve on; default: 127.0.0.1, which this machine alone reaches"
    )
    cli.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="where embeddings are kept; default: ~/.cache/cmapkd/search"
    )
    return cli


def _top(text: str) -> int:
    if not (text.isdigit() and 1 <= int(text) <= MOST):
        raise argparse.ArgumentTypeError(f"{text}: a number from 1 to {MOST}")
    return int(text)


def _port(text: str) -> int:
    if not (text.isdigit() and int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text} is no port: write --serve behind MODEL and FOLDER, or --serve=8000")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, one of exits.ENDS."""
    args = parser().parse_args(argv)
    try:
        return _search(args)
    except InputError as error:
        print(f"error: {error}{room(error)}", file=sys.stderr)
        return end_of(error).code
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; what was embedded is kept", file=sys.stderr)
        return ENDS["interrupted"].code


def _search(args: argparse.Namespace) -> int:
    if args.serve is None and bool(" ".join(args.query).strip()) == bool(args.like):
        raise InputError('give a query such as "a red mug", or --like PICTURE, or --serve: one of them')
    if args.serve is not None and (args.like or args.html):
        raise InputError("--serve makes a page to ask in: leave out --like and --html")
    sides = _sides(args)
    if args.serve is not None:
        return _serve(args, sides)
    from cmapkd.searching.nearest_page import Asked
    from cmapkd.searching.page_server import answer

    asked = Asked(" ".join(args.query), like=str(args.like or ""), top=args.top)
    columns = _like(sides, args.like, args.top) if args.like else answer(sides, asked)
    with until_enough():
        for column in columns:
            _print(column, sides[0].index.folder.pictures)
    if args.html or args.show:
        _write(args, sides, asked, columns)
    return 0


def _sides(args: argparse.Namespace) -> list[Side]:
    """The models with their embeddings of the folder; says what it found and what it left out."""
    from cmapkd.searching.page_server import Side  # with torch, which takes longer than to read or explain a command
    from cmapkd.searching.picture_index import index
    from cmapkd.searching.prepared_pictures import data_sets_below, pictures_at
    from cmapkd.searching.searched_model import OWN_TEACHER, open_model, teacher_of
    from cmapkd_core import parallel
    from cmapkd_core.progress import ProgressDisplay

    folder = pictures_at(args.folder)
    if data_sets := data_sets_below(folder):
        print(
            f"search: {folder.place} is a root of runs, so it has figures of reports; {data_sets}, with their pictures"
        )
    models = {"student" if args.teacher else "model": args.model}
    if args.teacher:
        models["teacher"] = teacher_of(args.model) if args.teacher == OWN_TEACHER else args.teacher
    opened = {role: open_model(spelling) for role, spelling in models.items()}  # all, before one embeds for minutes
    cache, sides = args.cache or user_cache("search"), []
    for role, model in opened.items():
        say = ProgressDisplay(quiet=False)
        made = index(folder, model, parallel.device(), cache, say)
        say.end()
        sides.append(Side(role, made))
        kept = len(made.numbers) - made.embedded
        print(f"search: {role} {made.model.name}: {made.embedded} pictures embedded, {kept} from the cache {cache}")
    _say_broken(sides)
    return sides


def _say_broken(sides: list[Side]) -> None:
    """Pictures that are left out, and files that are none.

    Raises:
        InputError: no picture is left.
    """
    from cmapkd.searching.picture_folder import shown

    broken = {path: why for side in sides for path, why in side.index.broken.items()}
    folder = sides[0].index.folder
    if broken:
        print(f"search: {len(broken)} of {len(folder.pictures)} pictures cannot be read and are left out:")
    for path, why in list(broken.items())[:_BROKEN]:
        print(f"  {shown(path)}: {shown(why)}")
    if len(broken) > _BROKEN:
        print(f"  and {len(broken) - _BROKEN} more")
    if folder.others:
        print(f"search: other files, no pictures by their names: {folder.others}")
    if not all(side.index.numbers for side in sides):
        raise InputError(f"no picture of {folder.place} can be read: give a folder with others")


def _like(sides: list[Side], path: Path, top: int) -> list[Column]:
    """Pictures like one from anywhere."""
    from cmapkd.searching.picture_folder import read_picture
    from cmapkd.searching.picture_index import view_of
    from cmapkd_core.data.augment import eval_view
    from cmapkd_core.errors import BadImageError

    try:
        with read_picture(path) as image:
            queries = [side.index.like(eval_view(image, view_of(side.index.model))) for side in sides]
    except BadImageError as error:
        raise InputError(f"--like {path}: {error}") from error
    return [side.column(query, top) for side, query in zip(sides, queries, strict=True)]


def _print(column: Column, pictures: Sequence[PictureFile]) -> None:
    from cmapkd.searching.picture_folder import shown

    print(f"\n{column.role}: {column.name}\n  rank  score  picture")
    for rank, match in enumerate(column.found, 1):
        caption = textwrap.shorten(shown(pictures[match.number].caption), 80, placeholder=" ..")
        print(f"  {rank:4d}  {match.score:5.3f}  {shown(match.path)}{caption and f'  {caption}'}")


def _write(args: argparse.Namespace, sides: list[Side], asked: Asked, columns: list[Column]) -> None:
    """The page as a file.

    Raises:
        InputError: it cannot be written.
    """
    from cmapkd.searching.nearest_page import inline, page

    folder = sides[0].index.folder
    out = args.html or (args.cache or user_cache("search")) / "nearest.html"
    text = page(folder, asked, columns, inline(folder), left_out=len(sides[0].index.broken))
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--html {out} cannot be written: {error.strerror or error}") from error
    print(f"\nsearch: pictures: {out}")
    if args.show:
        webbrowser.open(out.resolve().as_uri())


def _serve(args: argparse.Namespace, sides: list[Side]) -> int:
    """Answer until Ctrl-C, which is the usual end."""
    from cmapkd.searching.page_server import serve

    with serve(sides, args.host, args.serve, args.top) as server:
        url = f"http://{args.host}:{server.server_address[1]}/"
        print(f"\nsearch: open {url} in a browser; Ctrl-C ends it", flush=True)
        if args.show:
            webbrowser.open(url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nsearch: ended by Ctrl-C")
    return 0


if __name__ == "__main__":
    sys.exit(main())
