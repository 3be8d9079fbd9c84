"""The contract of a stage: strings in; a folder of files and a manifest, written last, out.

`execute` is the same for every stage: answer at once when the artifact is there and was made from
the same inputs; otherwise run the body, upload what it wrote, and commit with one exclusive write.
"""

from __future__ import annotations

import dataclasses
import importlib
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmapkd_core import __version__, parallel, storage, temporary
from cmapkd_core.config import Recipe
from cmapkd_core.data import copies
from cmapkd_core.data.shards import ShardSet
from cmapkd_core.errors import InputError
from cmapkd_core.fingerprints import fingerprint
from cmapkd_core.progress import ProgressDisplay, Say
from cmapkd_core.records import record_run
from cmapkd_core.request import Request
from cmapkd_core.stages.artifact import WORK, Artifact, find, look, retire, set_aside
from cmapkd_core.stages.commit import commit
from cmapkd_core.stages.ending import (
    attempt_folder,
    clear_behind,
    clear_finished,
    commit_artifact,
    leftovers,
    theirs_stands,
)
from cmapkd_core.stages.identities import Identities, Paths, changed, identities
from cmapkd_core.stages.manifest import DamagedError
from cmapkd_core.stages.nearby import open_input
from cmapkd_core.stages.not_sized import about_sizes
from cmapkd_core.stages.owed import JOURNAL, deliver_owed
from cmapkd_core.stages.refused import Refusals
from cmapkd_core.stages.tracked import committing, failed, finished, open_tracker, overtaken, reported_to_mlflow
from cmapkd_core.stages.turn import Turn
from cmapkd_core.tracking import Tracker
from cmapkd_core.view import Declared, view

if TYPE_CHECKING:
    from cmapkd_core.models.identity import Identity

_GIVEN = 'add "{}" to the `fields` that it gives to execute'
LOOK = 5.0  # seconds between two looks at an artifact that another task makes


@dataclass
class Context:
    """What a stage's body works with.

    recipe: a view of the fields that the stage declared; reading another raises (view.py). out: local folder that
    becomes the artifact. workdir: URL of its checkpoints.
    """

    recipe: Recipe
    inputs: dict[str, Artifact]
    out: Path
    scratch: Path
    tracker: Tracker
    workdir: str
    identity: str
    say: Say
    earlier_seconds: float = 0.0  # of the attempts that this one goes on from
    shards: ShardSet | None = None  # once they are open (`shards.shards_of`)
    models: dict[str, Any] = field(default_factory=dict)  # what the stage's models are, by role; kept in the manifest
    # Files that lie in the artifact already, as its manifest names them, and their folder there, which attempts share.
    placed: dict[str, dict[str, Any]] = field(default_factory=dict)
    shared: str = ""

    def introduce(self, role: str, identity: Identity) -> None:
        """Say which model plays a role ("teacher", "student", "model"), and keep it for the manifest."""
        if self.models.get(role) != identity.plain():
            self.models[role] = identity.plain()
            self.say(f"{role} is {identity.line()}\n")


Body = Callable[[Context], dict[str, float]]


class Late:
    """A body that has a module of its own below stages/bodies, with what that imports: models, torch, figures.

    Only a stage that has work to do imports it, and before anything of that is timed.
    """

    def __init__(self, module: str, /, **arguments: Any) -> None:
        """`module`: its name there; its `body` takes `arguments` beside the context."""
        self._module, self._arguments = f"cmapkd_core.stages.bodies.{module}", arguments

    def load(self) -> Body:
        """The body."""
        body: Callable[..., dict[str, float]] = importlib.import_module(self._module).body
        return partial(body, **self._arguments)


def execute(
    request: Request,
    stage: str,
    *,
    url: str,
    fields: dict[str, Any],
    inputs: dict[str, str],
    body: Body | Late,
    declared: Declared | None = None,
    paths: Paths | None = None,
    suite: dict[str, str] | None = None,
) -> str:
    """Run `stage` into `url` unless it is done, and return `url`.

    Args:
        fields: what of the recipe the stage reads; kept in the manifest.
        inputs: URLs of the artifacts that it reads; their digests decide whether a finished stage still holds.
        declared: the recipe's fields that the body may read; None: those of `fields`.
        paths: files and folders that it reads by path, which decide as the inputs do (identities.py).
        suite: what the run's record has beside the request, where the run is a suite (`records.SUITE`).

    Raises:
        InputError: an input is missing, the root cannot be written, the run's name has another recipe, or the attempt
            before this one found bad input (stages/refused.py).
    """
    parallel.start()
    say = ProgressDisplay(quiet=parallel.rank() > 0)
    if parallel.local_rank() == 0 and (cleared := temporary.clear() + copies.clear()).folders:
        say(f"{stage}: {cleared}\n")
    if parallel.rank() == 0:
        commit()  # kept from here on: a checkout may have moved on when the stage ends
        with reported_to_mlflow(request, stage):
            storage.check_writable(request.root)
        if not request.own_overrides:  # the run's other tasks hold it to its record
            record_run(request.root, request.run, dataclasses.asdict(request) | (suite or {}), stage)
    with reported_to_mlflow(request, stage):
        opened = {name: open_input(name, where) for name, where in inputs.items()}
    digests = {name: {"url": a.url, "digest": a.digest} for name, a in opened.items()}
    with Turn(request, stage, url) as turn:
        if _answered(turn, lambda: _answer(request, stage, url, digests, paths or {}, say), say):
            return url
        refusals = Refusals(storage.join(url, WORK), stage, {**dataclasses.asdict(request), "inputs": digests})
        refusals.repeat()  # MLflow has it from the attempt that found it
        try:
            resolved, declares = request.resolved(), declared or Declared(stage, frozenset(fields), _GIVEN)
            if note := about_sizes(request, resolved, declares):
                say(f"{stage}: {note}\n")
            recipe = view(resolved, declares)
            files = parallel.broadcast(identities(paths or {}) if parallel.rank() == 0 else {})
            work = body.load() if isinstance(body, Late) else body
            return _run(request, stage, url, fields, opened, digests, work, say, recipe, files)
        except InputError as error:
            refusals.keep(error)
            raise


def _answered(turn: Turn, answer: Callable[[], bool], say: Say) -> bool:
    """True where the artifact stands, maybe after another task has made it; False once it is this one's to make."""
    holder = ""
    while True:
        done, who = False, ""
        if parallel.rank() == 0:
            done = answer()
            who = "" if done else turn.take()
            done = done or (not who and answer())  # the other may have ended between the two
        done, who = parallel.broadcast((done, who))
        if done or not who:
            return bool(done)
        if who.partition("(")[0] != holder:
            holder = who.partition("(")[0]
            say(f"waits for {who}, which makes the same artifact\n")
        time.sleep(LOOK)


def _run(
    request: Request,
    stage: str,
    url: str,
    fields: dict[str, Any],
    opened: dict[str, Artifact],
    digests: dict[str, dict[str, str]],
    body: Body,
    say: ProgressDisplay,
    recipe: Recipe,
    files: Identities,
) -> str:
    started = time.monotonic()
    _set_threads(recipe)
    workdir = storage.join(url, WORK)
    left, folder = leftovers(url) if parallel.rank() == 0 else set(), attempt_folder()
    with temporary.folder() as scratch:
        tracker = open_tracker(request, stage, workdir, scratch / JOURNAL)
        context = Context(
            recipe=recipe,
            inputs=opened,
            out=scratch / "out",
            scratch=scratch,
            tracker=tracker,
            workdir=workdir,
            identity=fingerprint(
                {**fields, **{f"{n}.digest": d["digest"] for n, d in digests.items()}, **_contents(files)}
            ),
            say=say,
        )
        context.out.mkdir()
        committed = True
        try:
            metrics = body(context)
            tracker.log(metrics, 0)
            say.end()
            if parallel.rank() == 0:
                shutil.copy(scratch / JOURNAL, context.out)
                seconds = context.earlier_seconds + time.monotonic() - started
                manifest = _manifest(request, stage, fields, digests, metrics, seconds, context.models)
                committing(tracker, request, stage, url)
                committed = commit_artifact(url, folder, manifest | {"files": files}, context, left)
        except BaseException as error:
            say.end()
            if not theirs_stands(error, url, folder, context, stage):
                failed(tracker, request, stage, error, scratch / JOURNAL, workdir)
                clear_behind(error, url, folder, context)
                raise
            committed = False
        if committed:
            finished(tracker, request, url)
        else:
            overtaken(tracker, url)
    parallel.barrier()
    return url


def _set_threads(recipe: Recipe) -> None:
    """Of torch, where the body works with it: then it has imported it."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(recipe.runtime.threads or torch.get_num_threads())


def _answer(
    request: Request, stage: str, url: str, digests: dict[str, Any], paths: Paths, say: ProgressDisplay
) -> bool:
    """True when the artifact at `url` stands; an outdated one is set aside, and so is a damaged manifest."""
    left = leftovers(url)
    try:
        artifact = look(url)
    except DamagedError as damaged:
        kept = set_aside(damaged)
        say(f"{stage}: its manifest is damaged ({damaged.why}), so it runs again; the damaged one is kept as {kept}\n")
        return False
    if artifact is None:
        return False
    stays = stands(request, stage, artifact, digests, paths, say)
    deliver_owed(request, [artifact])  # of one that is set aside too: its journal goes with it
    if (now := find(url)) is None or now.digest != artifact.digest:  # another process was at it meanwhile
        return _answer(request, stage, url, digests, paths, say)
    if not stays:
        retire(artifact)
        return False
    clear_finished(artifact, left, say)
    say(
        f"{stage}: already complete ({artifact.manifest['seconds']:.0f} s then): {url}{_made_by_other_code(artifact)}\n"
    )
    return True


def stands(request: Request, stage: str, artifact: Artifact, digests: dict[str, Any], paths: Paths, say: Say) -> bool:
    """Whether a complete artifact is what the stage would make now; says why it is not.

    Args:
        digests: URL and digest of each of its inputs, by name.
        paths: files and folders that it reads by path.
    """
    url = artifact.url
    if request.redo == "yes":
        say(f"{stage}: runs again as asked; the earlier result is kept as {url}/retired/{artifact.digest[:8]}.json\n")
        return False
    if {k: v["digest"] for k, v in artifact.manifest["inputs"].items()} != {k: v["digest"] for k, v in digests.items()}:
        say(f"{stage}: its inputs have changed since it was made, so it runs again: {url}\n")
        return False
    differ, gone = changed(artifact.manifest.get("files", {}), paths)
    if differ:
        say(f"{stage}: runs again, what it read has changed since: {'; '.join(differ)}: {url}\n")
        return False
    for reason in gone:
        say(f"{stage}: {reason}, so whether it has changed is not known; what was made from it stands\n")
    return True


def _contents(files: Identities) -> dict[str, str]:
    """What a checkpoint is of, beside its fields and inputs; stage prepare itself compares the rows of a folder."""
    return {f"{n}.content": str(one.get("sha256", one["stamp"])) for n, one in files.items() if "stamp" in one}


def _made_by_other_code(artifact: Artifact) -> str:
    """What to know of a result that stands although the code has changed; "" where it has not, or nothing says so.

    Code decides no place: a correction of a comment would train everything anew.
    """
    now, then = commit(), artifact.manifest.get("commit", "")
    if now in ("", then):
        return ""
    return f"; made by {then or 'an unknown commit'}, this is {now}: `--only STAGE` runs it again"


def _manifest(
    request: Request,
    stage: str,
    fields: dict[str, Any],
    digests: dict[str, dict[str, str]],
    metrics: dict[str, float],
    seconds: float,
    models: dict[str, Any],
) -> dict[str, Any]:
    return {
        "stage": stage,
        "recipe": request.recipe,
        "ablation": request.ablation,
        "overrides": request.all_overrides,
        "run": request.run,
        "fields": fields,
        "fingerprint": fingerprint(fields),
        "code": __version__,
        "commit": commit(),
        "inputs": digests,
        "models": models,
        "metrics": metrics,
        "seconds": round(seconds, 3),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
