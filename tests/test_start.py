"""What a command imports before it has anything to do: by names and not by time, which a busy machine has none of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from cmapkd_core.request import Request
from cmapkd_core.stages import prepare

REPOSITORY = Path(__file__).parents[1]
MODELS = {
    "torch",
    "open_clip",
    "timm",
    "transformers",
    "torchvision",
    "mlflow",
    "kfp",
    "boto3",
    "sklearn",
    "matplotlib",
}
# Each line of `seen` is a moment, with what of MODELS is imported by then.
CODE = """
import importlib, json, sys
from contextlib import redirect_stdout, suppress
root, modules = sys.argv[1], set(json.loads(sys.argv[2]))
seen = {}
def look(moment):
    seen[moment] = sorted(modules & set(sys.modules))
with redirect_stdout(sys.stderr):
    from cmapkd.pipelines import submit
    with suppress(SystemExit):
        submit.main(["--help"])
    look("submit.py --help")
    from cmapkd_core.stages import cli
    for stage in ("gate", "teacher", "train", "levels", "export", "evaluate", "report", "prepare"):
        run = importlib.import_module("cmapkd_core.stages." + stage).run
        with suppress(SystemExit):
            cli.main(run, ["--help"])
        look(stage)
    assert cli.main(run, ["--recipe", "tiny", "--root", root, "--run", "r", "--artifact", root + "/url"]) == 0
    look("complete")
    from cmapkd_core.recipes import resolve
    from cmapkd_core.stages import given
    recipe = resolve("paper", overrides="teacher.weights=openai@teacher.safetensors")
    paths = given.of_teacher(recipe) | given.of_training(recipe, "")
    paths |= given.of_evaluation(recipe, "recipe:student", ("zeroshot",))
    assert paths == {"teacher.weights": "teacher.safetensors"}, paths
    look("paths")
    from cmapkd_core.stages.execute import execute
    from cmapkd_core.request import Request
    for _ in range(2):
        execute(Request("tiny", root), "toy", url=root + "/toy/0", fields={}, inputs={}, body=lambda context: {})
    look("a body without a model")
    modules -= {"sklearn", "matplotlib"}
    importlib.import_module("cmapkd_core.stages.bodies.report")
    look("the report's body")
print(json.dumps(seen))
"""


def test_nothing_imports_models_before_it_works(tmp_path: Path) -> None:
    url = prepare.run(Request("tiny", str(tmp_path)))
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path), json.dumps(sorted(MODELS))],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    assert (tmp_path / "url").read_text() == url
    assert "prepare: already complete" in done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert len(seen) == 13
    assert not {moment: found for moment, found in seen.items() if found}
