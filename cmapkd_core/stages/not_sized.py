"""What a stage says that runs recipe `own` by itself: its numbers are not those of the user's pairs. No torch."""

from __future__ import annotations

from cmapkd_core.commands import submit
from cmapkd_core.config import Recipe
from cmapkd_core.fields import as_overrides, flatten, parse_overrides
from cmapkd_core.recipes import FULL, ROWS
from cmapkd_core.request import Request
from cmapkd_core.sizing import SIZED, SIZES
from cmapkd_core.view import Declared


def about_sizes(request: Request, recipe: Recipe, declared: Declared) -> str:
    """The fields that a stage takes as the recipe has them, and how to get those of a run; "" of a run's stage.

    Args:
        recipe: the request's, all of it.
        declared: what the stage reads; others of the sizes are of no matter to it.
    """
    given = {*parse_overrides(request.all_overrides), *ROWS[request.ablation or FULL]}
    left = [name for name in SIZES if name in declared.names and name not in given]
    if request.recipe not in SIZED or not left:
        return ""
    taken = as_overrides({name: flatten(recipe)[name] for name in left})
    data = request.data or (f"{recipe.data.source}:{recipe.data.url}" if recipe.data.url else "DATA")
    dry_run = submit("--recipe", request.recipe, "--data", data, "--local", "--dry-run")
    return (
        f"recipe {request.recipe} has the sizes of 1,000 pairs here, since only a run counts yours: {taken}\n"
        f"  `{dry_run}` prints a run's as overrides: give them with --overrides '..'"
    )
