"""The layers of the package, read from its imports; a layer imports only what is below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import cmapkd_core

ROOT = Path(cmapkd_core.__file__).parent
REPOSITORY = ROOT.parent

# From the ground up. Parts of one layer do not import each other; a part may import itself and what is below.
LAYERS = [
    {"commands", "command_line"},
    {"errors"},
    {"fields", "logins", "exits", "temporary", "markup", "progress", "usage"},
    {"catalog"},
    {"method_specs", "values"},
    {"config", "view"},
    {"model_reference"},
    {"folders", "ensemble"},
    {"fingerprints", "checks", "sizing"},
    {"recipes", "executor_output"},
    {"storage", "tracking", "parallel"},
    {"places", "request"},
    {"records"},
    {"data", "models", "losses"},
    {"methods", "fetch_weights", "convert_weights"},
    {"engine", "evaluate", "report", "export"},
    {"stages"},
]
HEIGHT = {part: height for height, parts in enumerate(LAYERS) for part in parts}
# Losses are pure functions of tensors: no recipe, rank or device.
ALLOWED_BELOW = {"losses": set()}
OUTSIDE = {
    "boto3": {"storage"},
    "botocore": {"storage"},
    "mlflow": {"tracking"},
    "simplejpeg": {"data"},
    "webdataset": {"data"},
    "open_clip": {"models", "evaluate", "export", "data"},  # its lists of prompt templates and of ImageNet's classes
    "ijson": {"data"},
    "pydantic": {"fields", "values", "config"},
    "transformers": {"models", "export"},
    "onnxruntime": {"export"},
    "pycocoevalcap": {"evaluate"},
    "matplotlib": {"report"},
    "sklearn": {"report"},
}


def part_of(module: str) -> str:
    """`cmapkd_core.data.shards` -> `data`."""
    return module.split(".")[1] if "." in module else ""


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Every node of a file's syntax tree; each file is parsed once."""
    return tuple(ast.walk(ast.parse(path.read_text())))


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules that a file imports anywhere in it, also inside functions; `from p import q` counts as p.q too."""
    found: set[str] = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            assert node.module
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def package_files() -> dict[Path, str]:
    """Every file of the package with the part that it belongs to; `__init__` of the package is no part."""
    files = {p: p.relative_to(ROOT).parts[0].removesuffix(".py") for p in ROOT.rglob("*.py")}
    return {path: part for path, part in files.items() if part != "__init__"}


def test_every_part_has_its_layer():
    assert set(package_files().values()) == set(HEIGHT)


@pytest.mark.parametrize("part", sorted(HEIGHT, key=lambda part: (HEIGHT[part], part)))
def test_a_part_imports_only_what_is_below_it(part):
    wrong = []
    for path in (path for path, owner in package_files().items() if owner == part):
        for module in imports(path):
            used = part_of(module) if module.startswith("cmapkd_core.") else ""
            if used in ("", part, "__version__"):
                continue
            allowed = ALLOWED_BELOW.get(part, {p for p, height in HEIGHT.items() if height < HEIGHT[part]})
            if used not in allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


# The floors of report/, from the ground up: what is read, its intervals, tables, figures, sections, forms, reports.
FLOORS = [
    *("read", "resampling", "significance", "row_differences"),
    *("tables", "figures", "sections", "render", "reports"),
]


def report_imports() -> dict[str, set[str]]:
    """Module of report/ -> the modules of report/ that it imports, both as `tables.build`."""
    prefix = f"{cmapkd_core.__name__}.report."
    files = {path: path.relative_to(ROOT / "report").with_suffix("") for path in (ROOT / "report").rglob("*.py")}
    modules = {".".join(name.parts): path for path, name in files.items() if name.name != "__init__"}
    return {
        module: {found.removeprefix(prefix) for found in imports(path)} & set(modules) - {module}
        for module, path in modules.items()
    }


def test_a_report_is_made_in_one_direction():
    found = report_imports()
    height = {module: FLOORS.index(module.split(".")[0]) for module in found}
    assert {FLOORS[floor] for floor in height.values()} == set(FLOORS)
    wrong = [f"{one} imports {other}" for one, used in found.items() for other in used if height[other] > height[one]]
    assert not wrong


def test_modules_of_a_report_have_an_order():
    """Also on one floor none leads back to itself."""
    list(TopologicalSorter(report_imports()).static_order())


def test_the_library_does_not_know_the_pipeline():
    for path in ROOT.rglob("*.py"):
        roots = {module.split(".")[0] for module in imports(path)}
        assert not roots & {"kfp", "cmapkd"}, path


@pytest.mark.parametrize("library", list(OUTSIDE))
def test_a_library_has_one_place(library):
    users = {
        part
        for path, part in package_files().items()
        if any(module == library or module.startswith(library + ".") for module in imports(path))
    }
    assert users == OUTSIDE[library]


@pytest.mark.parametrize(
    "module",
    [
        *("catalog", "config", "fields", "method_specs", "models.named", "places"),
        *("recipes", "records", "request", "storage"),
    ],
)
def test_a_dry_run_loads_no_torch(module):
    """Also not by way of something else: looked at in a fresh interpreter."""
    heavy = "torch", "open_clip", "transformers", "mlflow", "boto3"
    asked = {
        "recipes": "resolve('tiny', overrides='evaluate.sets=vqa=scenes_vqa,efficiency')",  # looks for its rows' files
        "models.named": "check_model(cmapkd_core.recipes.resolve('paper').teacher, here=True)",  # and names, tags
    }
    called = f"; import cmapkd_core.recipes; cmapkd_core.{module}.{asked[module]}" if module in asked else ""
    code = f"import sys, cmapkd_core.{module}{called}; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert found.stdout.strip() == "[]"


def test_prepare_loads_no_model() -> None:
    """Most of what its start would take; read from what its modules import at their top."""
    files = {
        ".".join(p.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): p for p in package_files()
    }
    waiting, loaded = ["cmapkd_core.stages.prepare", "cmapkd_core.stages.bodies.prepare"], set()
    while waiting:
        module = waiting.pop()
        loaded.add(module)
        tops = nodes_of(files[module])[0].body if module in files else []
        froms = [node for node in tops if isinstance(node, ast.ImportFrom)]
        named = {alias.name for node in tops if isinstance(node, ast.Import) for alias in node.names}
        named |= {name for node in froms for name in (node.module, *(f"{node.module}.{a.name}" for a in node.names))}
        named |= {name.rpartition(".")[0] for name in named | {module} if "." in name}
        waiting += named - loaded - {*waiting}
    assert {"cmapkd_core.data.shards", "torch"} <= loaded
    assert not {"open_clip", "timm", "transformers", "torchvision"} & {name.split(".")[0] for name in loaded}


def test_the_environment_is_read_at_the_edges_only():
    for path, part in package_files().items():
        reads_it = {"os.environ", "os.getenv"} & {
            f"{node.value.id}.{node.attr}"
            for node in nodes_of(path)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        }
        assert not reads_it or part in ("storage", "tracking", "parallel"), path


def test_nothing_is_unpickled():
    """Weights come as safetensors or by torch's restricted loader."""
    for path in ROOT.rglob("*.py"):
        for node in nodes_of(path):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("pickle.load", "pickle.loads", "numpy.load", "np.load"), path
            if called == "torch.load":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("weights_only") == "True", path


def test_no_function_is_longer_than_sixty_lines():
    long = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}"
        for folder in ("cmapkd_core", "cmapkd")
        for path in (REPOSITORY / folder).rglob("*.py")
        for node in nodes_of(path)
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 60
    ]
    assert not long


def test_no_two_modules_have_one_name() -> None:
    """Who reads `level_distances.py` in a traceback finds one file; a stage's body is named as its stage."""
    found: dict[str, list[str]] = {}
    for path in (*ROOT.rglob("*.py"), *(REPOSITORY / "cmapkd").rglob("*.py")):
        if path.stem != "__init__" and path.parent.name != "bodies":
            found.setdefault(path.stem, []).append(str(path.relative_to(REPOSITORY)))
    assert not {name: paths for name, paths in found.items() if len(paths) > 1}
