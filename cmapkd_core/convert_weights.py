"""A weights file of torch's formats (.pt, .pth, .bin; OpenAI's archives too) to safetensors, which hold no code.

    python -m cmapkd_core.convert_weights ViT-L-14.pt ViT-L-14.safetensors
    python -m cmapkd_core.convert_weights s3://bucket/ViT-L-14.pt s3://bucket/ViT-L-14.safetensors

The file is read with weights_only by a process of its own, which gets memory and time by the size of the file and has
no credentials.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cmapkd_core import storage, temporary
from cmapkd_core.command_line import Parser
from cmapkd_core.errors import InputError
from cmapkd_core.logins import refuse_login
from cmapkd_core.models.bounded import convert_here


def convert(source: str, target: str) -> None:
    """Write the tensors of `source` to `target`, each a path or s3://; what was there is replaced.

    Raises:
        InputError: `source` is missing, no table of tensors, damaged, or asks for more than a file of its size may.
        StorageError: a place cannot be read or written.
    """
    for name, url in (("IN", source), ("OUT", target)):
        refuse_login(name, url)
    if not target.endswith(".safetensors"):
        raise InputError(f"OUT {target}: write a file that ends in .safetensors")
    with temporary.folder() as folder:
        try:
            path = storage.fetch(source, folder / source.rpartition("/")[2])
        except FileNotFoundError:
            raise InputError(f"there is no weights file {source}: check the place") from None
        made = folder / "made.safetensors"
        convert_here(path, made)
        storage.put(made, target)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument(
        "source", metavar="IN", help="a .pt, .pth or .bin file, a path or s3:// (credentials as for a run)"
    )
    cli.add_argument("target", metavar="OUT", help="the .safetensors file to write, a path or s3://")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = parser().parse_args(argv)
    try:
        convert(args.source, args.target)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.target} holds the tensors of {args.source}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
