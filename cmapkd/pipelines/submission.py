"""What a command line decides before anything starts: recipe, run, tasks, parameters, URLs."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from kfp import dsl

from cmapkd.pipelines import mirror, package, runs, suite
from cmapkd.pipelines.own_data import fitted
from cmapkd.pipelines.package import Plan, select, without
from cmapkd.pipelines.runs import Now, Run
from cmapkd.pipelines.site import Site, load_site, on_this_machine
from cmapkd.pipelines.tasks import CONTROL, Task, output_urls, own_recipe, tasks_of, timed
from cmapkd_core import storage
from cmapkd_core.config import Recipe
from cmapkd_core.ensemble import further_teachers, require_heads
from cmapkd_core.errors import InputError
from cmapkd_core.fields import as_overrides, choose, joined, parse_overrides
from cmapkd_core.fingerprints import fingerprint
from cmapkd_core.folders import check_data, reads_folder, spelled
from cmapkd_core.logins import refuse_login
from cmapkd_core.method_specs import METHODS
from cmapkd_core.models.named import check_lift, check_model
from cmapkd_core.recipes import BASELINES, FULL, RECIPES, REFERENCE, ROWS, SUITES
from cmapkd_core.records import SUITE, read_record, result_fields
from cmapkd_core.request import DECIDING, flag_of, recipe_of
from cmapkd_core.sizing import PairCount
from cmapkd_core.storage import StorageError
from cmapkd_core.view import FREE

# flags that decide the recipe
CHOOSES = (*("set" if name == "overrides" else name for name in DECIDING), "method", "suite", "seeds")
OF_A_START = ("root", "run", "only", "from_stage", "parallel", "expectations")  # those that say how it is started
SEEDS = "5"  # of a suite, when not given
NO_ROOT = "{root}"  # in the places of artifacts where no root is given
EXPERIMENT = 128  # characters of an experiment's name that Kubeflow Pipelines keeps


@dataclass(frozen=True)
class Submission:
    """All that is known of a run before it starts."""

    site: Site
    local: bool
    plan: Plan
    run: str
    request: dict[str, str]  # what is recorded: the strings of request.DECIDING, and of a suite its name and seeds
    arguments: dict[str, str]  # the pipeline's parameters
    urls: dict[str, str]  # artifact of every task
    tasks: tuple[Task, ...]  # of the whole pipeline
    recipes: dict[str, Recipe] = field(default_factory=dict)  # of a single run: "run" and "reference"
    suite: suite.Suite | None = None
    runs: tuple[Run, ...] = ()  # of a suite: those that a cluster gets
    fixed: dict[str, str] = field(default_factory=dict)  # of a suite: values that its packages' form does not show
    old: dict[str, str] = field(default_factory=dict)  # of a suite: digests of the manifests that it replaces, by URL
    readable: bool = True  # False: of a suite at a root that cannot be read from here
    pairs: PairCount | None = None  # of a recipe that is sized by them

    @property
    def whole(self) -> bool:
        """True of a package that serves every recipe, and so is worth keeping as a version of the pipeline."""
        return self.suite is None and len(self.plan.tasks) == len(self.tasks)

    @property
    def timed(self) -> tuple[str, ...]:
        """Names of the tasks that measure time: on one machine nothing may run beside them."""
        return timed(self.tasks, recipe_of(self.request))

    def package(self, path: Path, *, filled: bool = False, plan: Plan | None = None) -> Path:
        """Write the compiled pipeline; `filled` makes this run's arguments the defaults of its form."""
        form = package.defaults(self.site) | (self.arguments if filled else {})
        return package.write_package(package.build(self.site, plan or self.plan, form, self.fixed), path)

    def left(self, run: Run) -> tuple[str, ...]:
        """Tasks of one of its runs that are still to do."""
        doing = {task.name for task in self.plan.tasks}
        return tuple(name for name in run.urls if name in doing)

    def now(self, ids: Mapping[str, str], going: Collection[str] = ()) -> Now:
        """What there is to do; `ids` are KFP's of the runs that were started, by name; see Now."""
        return Now([task.name for task in self.plan.tasks], ids, going, self.old)

    def plan_of(self, run: Run, now: Now) -> Plan:
        """What one of its runs does."""
        tasks = runs.tasks(run, self.runs, now, self.arguments["root"], self.run)
        here = {task.name for task in tasks}
        given = {name: url for name, url in self.urls.items() if name not in here}
        return replace(self.plan, tasks=tasks, finished=given)


def decide(args: argparse.Namespace) -> Submission:
    """Decide everything that a command line means.

    Raises:
        InputError: an unknown name or field, contradicting flags, a run that is not there, a login in a URL,
            data without a folder to read, models that are none.
    """
    site = load_site(args.site or "site.toml", required=bool(args.site))
    parallel = at_a_time(args.parallel, 1 if args.local else site.parallel)
    site = on_this_machine(site, args.root, parallel) if args.local else replace(site, parallel=parallel)
    root = args.root or site.root
    refuse_login("root", root)
    again = bool(args.only or args.from_stage)
    request = earlier_request(args, root) if again else new_request(args, site)
    if site.weights and not (again or args.local):
        request = with_weights(request, site)
    for name, value in request.items():  # they become parameters, and the run's record
        refuse_login(name, value)
    part = partial(select, only=args.only, start=args.from_stage)
    if args.parallel and not args.local and "suite" not in request:
        raise InputError("--parallel bounds the tasks of a local run or of a suite: give --local, or a suite")
    pairs = None
    models = partial(check_models, here=args.local)
    if "suite" in request and not again:
        suite.check_rows(request, models)
    elif not again:
        models(recipe_of(request))
    if not (again or args.compile_only):  # a package's form may still name the data
        check_data(recipe_of(request), here=args.local)
        request, pairs = fitted(request)
    if args.expectations and "suite" not in request:
        raise InputError("--expectations is of a suite's report: give --suite")
    made = decide_suite if "suite" in request else decide_run
    return replace(made(args, site, root, request, part if again else None), pairs=pairs)


Part = Callable[[tuple[Task, ...]], tuple[Task, ...]]


def check_models(recipe: Recipe, here: bool) -> None:
    """Refuse models that are none, a teacher with random heads, or a lift that the student has no place for.

    Args:
        here: the stages run on this machine.

    Raises:
        InputError: names the model.
    """
    for model in (recipe.teacher, *further_teachers(recipe).values(), recipe.student):
        check_model(model, here)
    require_heads(recipe)
    check_lift(recipe.student)


def laid_out(root: str, run: str) -> Submission:
    """All tasks of an earlier run and where their artifacts lie; nothing is started of it.

    Raises:
        InputError: no such run, or a record that cannot be used.
    """
    nothing = dict.fromkeys((*CHOOSES, *OF_A_START, "schedule", "compile_only"), "")
    named = argparse.Namespace(**{**nothing, "run": run, "from_stage": "all", "local": True})
    request, site = earlier_request(named, root), Site()
    return (decide_suite if "suite" in request else decide_run)(named, site, root, request, tuple)


def decide_run(
    args: argparse.Namespace, site: Site, root: str, request: dict[str, str], part: Part | None
) -> Submission:
    """One recipe with one seed; `part` chooses the tasks of an earlier run to run again."""
    recipes = recipes_of(request)
    tell_of_row_without_effect(request, recipes["run"])
    name = f"{recipes['run'].name}-{request['ablation']}-s{recipes['run'].seed}"
    run = args.run or (f"{name}{changes(request)}" if args.local else f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    arguments = package.defaults(site) | request | {"root": root}
    tasks, urls = tasks_of(recipes["run"]), run_urls(recipes, root or NO_ROOT, run)
    tell_of_unread("run", args, request, lambda asked: run_urls(recipes_of(asked), root or NO_ROOT, run))
    plan = Plan(tasks)
    if args.schedule:  # each time the source is read anew, and what follows from new shards is trained anew
        anew = tuple(replace(task, redo="yes") if task.pod == "prepare" else task for task in tasks)
        # A scheduled run has no name but its Workflow's: KFP fills in "" for the job's (apiserver/template/
        # v2_template.go, ScheduledWorkflow), and all runs would be one without a name.
        plan = Plan(anew, run=dsl.PIPELINE_JOB_RESOURCE_NAME_PLACEHOLDER)
    if part:
        chosen = part(tasks)
        plan = Plan(chosen, without(tasks, urls, chosen), run, redo="yes")
    elif args.run and args.compile_only:
        plan = Plan(tasks, run=run)  # a submitted run has its name from KFP, so that one package serves them all
    return Submission(site, args.local, plan, run, request, arguments, urls, tasks, recipes)


def recipes_of(request: Mapping[str, str]) -> dict[str, Recipe]:
    """Of a single run: its own, and that of the control beside it."""
    return {"run": recipe_of(request), "reference": recipe_of(reference_of(request))}


def run_urls(recipes: Mapping[str, Recipe], root: str, run: str) -> dict[str, str]:
    """The artifact of every task of a single run."""

    def of_task(task: Task) -> Recipe:
        return recipes["reference"] if task.row else own_recipe(task, recipes["run"])

    return output_urls(tasks_of(recipes["run"]), of_task, root, run)


def reference_of(request: Mapping[str, str]) -> dict[str, str]:
    """The strings of the control beside a run: as the run's, and its own fields win over the run's overrides."""
    overrides = f"{request['overrides']} {CONTROL['own_overrides']}".strip()
    return {**request, "ablation": REFERENCE, "overrides": overrides}


def decide_suite(
    args: argparse.Namespace, site: Site, root: str, request: dict[str, str], part: Part | None
) -> Submission:
    """The recipes of a suite with several seeds. What is finished already takes no part, but for the report."""
    recipe = recipe_of(request | {"ablation": FULL, "seed": ""})
    name, count = request["suite"], int(request["seeds"])
    # The same command goes on with it, in a cluster too.
    run = args.run or f"{recipe.name}-{name}-{count}seeds{changes(request | {'ablation': FULL, 'seed': ''})}"
    if len(run) > EXPERIMENT and not args.local:
        raise InputError(
            f"a suite's experiment has its run's name, and of that {EXPERIMENT} characters at most, not {len(run)}: "
            "give it a shorter one with --run"
        )
    laid = suite.lay_out(name, request, suite.seeds_of(request), root or NO_ROOT, run, args.expectations)
    tell_of_equal_rows(name, request)

    def urls_of(asked: Mapping[str, str]) -> Mapping[str, str]:
        return suite.lay_out(name, asked, suite.seeds_of(asked)[:1], root or NO_ROOT, run).urls

    tell_of_unread("suite", args, request, urls_of)
    existing = None
    if part:
        done, redo = without(laid.tasks, laid.urls, part(laid.tasks)), "yes"
        again = {name: url for name, url in laid.urls.items() if name not in done}
        old = {laid.urls[name]: one.digest for name, one in suite.manifests(again).items()}
    else:
        existing, redo = None if args.compile_only or not root else finished(laid), ""
        done, old = existing or ({}, {})
    if args.local:
        done.pop(suite.REPORT, None)  # which prints its table
    plan = Plan(tuple(task for task in laid.tasks if task.name not in done), done, run, redo)
    fixed = {name: request[name] for name in DECIDING} | {"ablation": FULL, "seed": ""}
    arguments = {"root": root, "tracking_uri": site.tracking_uri, "image": site.image}
    made = () if args.local else runs.split(laid, site.parallel)
    job = Submission(site, args.local, plan, run, request, arguments, laid.urls, laid.tasks)
    return replace(job, suite=laid, runs=made, fixed=fixed, old=old, readable=existing is not None or bool(redo))


def tell_of_row_without_effect(request: Mapping[str, str], recipe: Recipe) -> None:
    """Says where a run's row leaves its recipe as it is, so that nobody waits for a comparison of a run with itself."""
    row = request["ablation"]
    if row != FULL and recipe == recipe_of({**request, "ablation": FULL}):
        print(
            f"note: row {row} changes nothing here, since recipe {request['recipe']} with its overrides has "
            f"{as_overrides(ROWS[row])} already",
            file=sys.stderr,
        )


def tell_of_equal_rows(name: str, request: Mapping[str, str]) -> None:
    """Says which rows of a suite are one and the same with this recipe, and what would make them differ."""
    for row, other in suite.equal_rows(name, request).items():
        fields = as_overrides({**ROWS[other], **ROWS[row]})
        print(
            f"note: rows {other} and {row} are one and the same here, since recipe {request['recipe']} with its "
            f"overrides has {fields} already; --set gives the other rows another value",
            file=sys.stderr,
        )


def tell_of_unread(
    what: str,
    args: argparse.Namespace,
    request: Mapping[str, str],
    urls_of: Callable[[Mapping[str, str]], Mapping[str, str]],
) -> None:
    """Says which of the fields that a command sets change no artifact, as nothing that it starts reads them.

    Args:
        what: a run, or a suite. urls_of: the artifacts of a request.
    """
    given = {name: one for name, one in parse_overrides(joined(args.set)).items() if not name.startswith(FREE)}
    overrides, recipe = parse_overrides(request["overrides"]), recipe_of({**request, "ablation": FULL, "seed": ""})
    whole = urls_of(request) if given else {}
    for name, value in given.items():
        without_it = {**request, "overrides": as_overrides({k: v for k, v in overrides.items() if k != name})}
        try:
            other = recipe_of({**without_it, "ablation": FULL, "seed": ""})
            unread = other != recipe and urls_of(without_it) == whole
        except InputError:  # what is left is no recipe, so it was read
            continue
        if unread:
            print(
                f"note: nothing of this {what} reads {name}={value}: its results are the same without", file=sys.stderr
            )


def cron(text: str) -> str:
    """A schedule in the six fields that KFP wants, from six or from the usual five.

    Raises:
        InputError: another number of fields.
    """
    fields = text.split()
    if len(fields) not in (5, 6):
        raise InputError(
            f"--schedule '{text}': five fields such as '0 2 * * 1' (Mondays at 2), or six with the seconds first"
        )
    return " ".join(fields if len(fields) == 6 else ["0", *fields])


def check_mode(args: argparse.Namespace) -> None:
    """Refuse what has no meaning together.

    Raises:
        InputError: names the flags.
    """
    modes = [flag_of(name) for name in ("check", "retry", "schedule") if getattr(args, name) not in (None, "")]
    if modes and args.local:
        raise InputError(f"{modes[0]} is of a cluster: leave out --local")
    given = [flag_of(name) for name in (*CHOOSES, *OF_A_START) if getattr(args, name)]
    if args.check is not None and given:
        raise InputError(f"--check tries the site with the recipe of its file: leave out {' '.join(given)}")
    unread = [flag for flag in given if flag != "--root"]
    if args.verify is not None and unread:
        raise InputError(f"--verify checks what is there: leave out {' '.join(unread)}")
    if args.deliver and unread:
        raise InputError(f"--deliver tells MLflow of a run as it was: leave out {' '.join(unread)}")
    if args.tracking_uri and not args.deliver:
        raise InputError("--tracking-uri is of --deliver: a run's is `tracking_uri` in the site file")
    if args.retry and given:
        raise InputError(f"--retry runs what failed again as it was: leave out {' '.join(given)}")
    part = [flag_of(name) for name in ("suite", "only", "from_stage", "wait") if getattr(args, name)]
    if args.schedule and part:
        raise InputError(f"--schedule starts whole runs, later and again: leave out {' '.join(part)}")


def at_a_time(given: str, default: int) -> int:
    """How many tasks run at a time, from --parallel.

    Raises:
        InputError: no such number.
    """
    if given and not (given.isdecimal() and int(given)):
        raise InputError(f"--parallel {given}: a number of tasks at a time, at least 1")
    return int(given or default)


def finished(laid: suite.Suite) -> tuple[dict[str, str], dict[str, str]] | None:
    """As suite.standing; None where the root cannot be read from here: then the stages find out."""
    try:
        return suite.standing(laid)
    except StorageError as error:
        print(f"what is finished already is left to the stages, from here the root cannot be read: {error}")
        return None


def new_request(args: argparse.Namespace, site: Site) -> dict[str, str]:
    """The strings that decide the recipe or the suite, from the flags and the site's defaults."""
    if args.method and args.ablation:
        raise InputError(
            f"--method {args.method} and --ablation {args.ablation}: give one; --set changes single fields"
        )
    row = args.ablation or FULL
    if args.method:  # a row as it is called, or the method that a row is as published
        row = METHODS[args.method].row if args.method in METHODS else ""
        row = row or args.method
        if row != FULL:
            choose("method", row, BASELINES, "METHODS in cmapkd_core/method_specs.py")
    strings = {"recipe": args.recipe or site.recipe, "ablation": row, "overrides": joined(args.set)}
    strings |= {"seed": args.seed, "data": spelled(args.data or site_data(site, args.recipe))}
    hint_at_own(args, strings)
    return strings | (suite_request(args, strings["recipe"]) if args.suite else single_request(args))


def hint_at_own(args: argparse.Namespace, strings: Mapping[str, str]) -> None:
    """Tells who names pictures and no recipe, nor a site's own, which one they get, and which counts pictures."""
    chosen = args.recipe or strings["recipe"] != Site.recipe
    if args.data and not chosen and reads_folder(strings["data"].partition(":")[0]):
        recipe = RECIPES[Site.recipe]
        print(
            f"note: no --recipe is given, so {recipe.teacher.model} teaches {recipe.student.model} as of recipe "
            f"{recipe.name}; --recipe own has small models, and takes what fits your number of pictures",
            file=sys.stderr,
        )


def with_weights(request: dict[str, str], site: Site) -> dict[str, str]:
    """The request with the site's files for what its models would fetch; tells what is fetched all the same."""
    given = as_overrides(mirror.replaced(site.weights, recipe_of(request)))
    request = request | {"overrides": " ".join(filter(None, (request["overrides"], given)))}
    rows = (request, reference_of(request))
    fetched = {what for row in rows for what in mirror.fetched(recipe_of(row))}
    for what in sorted(fetched):
        print(f"note: {what} is not in [weights] of the site file: its pod fetches it from the hub", file=sys.stderr)
    return request


def site_data(site: Site, asked: str) -> str:
    """The site's data; "" for a recipe that was `asked` for by name and comes with data of its own."""
    own = asked in RECIPES and not reads_folder(RECIPES[asked].data.source)
    return "" if own and asked != site.recipe else site.data


def single_request(args: argparse.Namespace) -> dict[str, str]:
    """Nothing more; refuses what only suites have."""
    if args.seeds:
        raise InputError("--seeds is the number of a suite's seeds: give --suite, or --seed for a single run")
    return {}


def suite_request(args: argparse.Namespace, recipe: str) -> dict[str, str]:
    """A suite's name and number of seeds."""
    choose("suite", args.suite, SUITES)
    choose("recipe", recipe, RECIPES)
    given = [flag_of(name) for name in ("ablation", "method", "seed") if getattr(args, name)]
    if given:
        raise InputError(f"--suite {args.suite} has its own rows and seeds: leave out {' '.join(given)}")
    seeds = args.seeds or SEEDS
    if not seeds.isdecimal() or int(seeds) < 1:
        raise InputError(f"--seeds {seeds}: a number of seeds, at least 1")
    return {"suite": args.suite, "seeds": seeds}


def earlier_request(args: argparse.Namespace, root: str) -> dict[str, str]:
    """The strings that an earlier run was asked for."""
    flag = "--only" if args.only else "--from-stage"
    if not args.run:
        raise InputError(f"{flag} runs part of an earlier run again: name it with --run")
    given = [flag_of(name) for name in CHOOSES if getattr(args, name)]
    if given:
        raise InputError(f"{flag} takes the recipe from the record of run '{args.run}': leave out {' '.join(given)}")
    record = read_record(given_root(root), args.run)
    return {name: record[name] for name in (*DECIDING, *SUITE) if name in record}


def site_and_root(args: argparse.Namespace) -> tuple[Site, str]:
    """The site file, and the absolute root of what is looked at and not started.

    Raises:
        InputError: there is no such file, or no root.
    """
    site = load_site(args.site or "site.toml", required=bool(args.site))
    return site, storage.absolute(given_root(args.root or (site.local.root if args.local else site.root)))


def given_root(root: str) -> str:
    """Raises InputError where there is none."""
    if not root:
        raise InputError("no root: give --root, or fill in `root` in the site file")
    return root


def changes(request: Mapping[str, str]) -> str:
    """What a name that the command did not give has behind its recipe: "" without overrides and data of its own.

    So the same command finds the same run, and one with another field set is another run, which shares what is equal.
    """
    fields = result_fields(request)
    return "" if fields == result_fields({**request, "overrides": "", "data": ""}) else f"-{fingerprint(fields)[:6]}"
