"""What a command line decides before anything starts: recipe, run, tasks, parameters, URLs."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

from cmapkd_core.config import Recipe
from cmapkd_core.errors import InputError
from cmapkd_core.fields import choose
from cmapkd_core.recipes import BASELINES, REFERENCE, resolve
from cmapkd_core.records import REQUEST, read_record
from pipelines.distill import Plan, defaults, output_urls, select
from pipelines.site import Site, load_site, on_this_machine

CHOOSES = ("recipe", "ablation", "method", "set", "seed", "data")  # flags that decide the recipe


@dataclass(frozen=True)
class Submission:
    """All that is known of a run before it starts."""

    site: Site
    local: bool
    plan: Plan
    run: str
    arguments: dict[str, str]  # the pipeline's parameters
    recipes: dict[str, Recipe]  # "run" and "reference"
    urls: dict[str, str]  # artifact of every task


def decide(args: argparse.Namespace) -> Submission:
    """Decide everything that a command line means.

    Raises:
        InputError: an unknown name or field, contradicting flags, a run that is not there.
    """
    site = load_site(args.site or "site.toml", required=bool(args.site))
    site = on_this_machine(site, args.root) if args.local else site
    root = args.root or site.root
    again = args.only or args.from_stage
    request = earlier_request(args, root) if again else new_request(args, site)
    recipes = {
        "run": resolve(*(request[name] for name in REQUEST)),
        "reference": resolve(*((request | {"ablation": REFERENCE})[name] for name in REQUEST)),
    }
    run = args.run or default_run(recipes["run"], request["ablation"], args.local)
    arguments = defaults(site) | request | {"root": root}
    urls = output_urls(recipes["run"], recipes["reference"], root or "{root}", run)
    plan = Plan()
    if again:
        tasks = select(args.only, args.from_stage)
        chosen = {task.name for task in tasks}
        plan = Plan(tasks, {name: url for name, url in urls.items() if name not in chosen}, run, redo="yes")
    elif args.run and args.compile_only:
        plan = Plan(run=run)  # a submitted run has its name from KFP, so that one package serves them all
    return Submission(site, args.local, plan, run, arguments, recipes, urls)


def new_request(args: argparse.Namespace, site: Site) -> dict[str, str]:
    """The strings that decide the recipe, from the flags and the site's defaults."""
    if args.method and args.ablation:
        raise InputError(
            f"--method {args.method} and --ablation {args.ablation}: give one; --set changes single fields"
        )
    if args.method:
        choose("method", args.method, BASELINES)
    row = args.method or args.ablation or "none"
    strings = {"recipe": args.recipe or site.recipe, "ablation": row, "overrides": " ".join(args.set)}
    return strings | {"seed": args.seed, "data": args.data or site.data}


def earlier_request(args: argparse.Namespace, root: str) -> dict[str, str]:
    """The strings that an earlier run was asked for."""
    flag = "--only" if args.only else "--from-stage"
    if not args.run:
        raise InputError(f"{flag} runs part of an earlier run again: name it with --run")
    given = [f"--{name}" for name in CHOOSES if getattr(args, name)]
    if given:
        raise InputError(f"{flag} takes the recipe from the record of run '{args.run}': leave out {' '.join(given)}")
    if not root:
        raise InputError("no root: give --root, or fill in `root` in the site file")
    record = read_record(root, args.run)
    return {name: record[name] for name in REQUEST}


def default_run(recipe: Recipe, row: str, here: bool) -> str:
    """Name of a run that was given none: here the same command finds the same run, on a cluster each is new."""
    name = f"{recipe.name}-{row}-s{recipe.seed}"
    return name if here else f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
