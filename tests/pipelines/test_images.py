"""The image: what the Dockerfile promises, its locks, and (slow) the built image itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCKER = REPOSITORY / "docker"
LOCKS = ("requirements-build.txt", "requirements.txt", "requirements-cuda.txt")
IMAGE = os.environ.get("CMAPKD_IMAGE", "cmapkd:cuda")  # what the slow tests run: the last one that `make images` built


def stages() -> dict[str, list[str]]:
    """Target -> its instructions, those of the targets that it builds on included."""
    text = re.sub(r"\\\n\s*", "", (DOCKER / "Dockerfile").read_text())
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if match := re.match(r"FROM (\S+) AS (\S+)", line):
            name = match.group(2)
            found[name] = list(found.get(match.group(1), []))
        elif name and line and not line.startswith("#"):
            found[name].append(line)
    return found


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Package -> version and number of hashes."""
    text = (DOCKER / name).read_text()
    found = {}
    for block in re.findall(r"^([a-z0-9._-]+)==(\S+)((?: \\\n +--hash=sha256:[0-9a-f]{64})*)$", text, re.MULTILINE):
        found[block[0]] = (block[1], block[2].count("sha256:"))
    return found


@pytest.mark.parametrize("target", ["cuda", "cpu"])
def test_a_target_is_non_root_labelled_and_without_entrypoint(target: str) -> None:
    instructions = stages()[target]
    assert [line for line in instructions if line.startswith("USER")] == ["USER 10001:10001"]
    assert not [line for line in instructions if line.startswith(("ENTRYPOINT", "CMD", "VOLUME", "ADD"))]
    assert any("image.version=${VERSION}" in line and "image.revision=${COMMIT}" in line for line in instructions)
    installs = [at for at, line in enumerate(instructions) if "pip install" in line]
    code = instructions.index("COPY --from=code / /app/")
    assert code > max(installs)  # a change of ours leaves their layers
    written = instructions.index('RUN echo "${COMMIT}" > cmapkd_core/COMMIT')
    assert code < instructions.index("ARG COMMIT=unknown") < written < instructions.index("USER 10001:10001")


def test_cuda_is_the_default() -> None:
    assert list(stages())[-1] == "cuda"


def test_packages_come_by_hash_and_from_the_lock_alone() -> None:
    for target, instructions in stages().items():
        for line in (line for line in instructions if "pip install" in line):
            assert "--no-deps" in line
            assert "--require-hashes" in line or (target == "cpu" and "requirements-cpu.txt" in line)
    for name in LOCKS:
        assert locked(name)
        assert all(hashes for _, hashes in locked(name).values()), name
        assert len(locked(name)) == len(re.findall(r"^[a-zA-Z0-9]", (DOCKER / name).read_text(), re.MULTILINE))


def test_no_lock_names_a_host() -> None:
    for path in DOCKER.glob("requirements*.txt"):
        assert not re.search(r"://|index-url|find-links|file:", path.read_text()), path


def test_the_lock_has_what_the_project_asks_for() -> None:
    """A new dependency: `make lock`."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["demo"], *extras["image"]]
    names = {re.match(r"[A-Za-z0-9._-]+", one).group().lower().replace("_", "-").replace(".", "-") for one in wanted}  # type: ignore[union-attr]
    have = {name.replace("_", "-").replace(".", "-") for lock in LOCKS for name in locked(lock)}
    assert not names - have, "make lock"
    torch = {name: version for name, (version, _) in locked("requirements-cuda.txt").items()}
    cpu = (DOCKER / "requirements-cpu.txt").read_text()
    assert all(f"{name}=={torch[name]}\n" in cpu for name in ("torch", "torchvision"))


def test_the_context_holds_what_is_copied_and_no_more() -> None:
    ignore = (REPOSITORY / ".dockerignore").read_text().split("\n")
    copied = re.findall(r"^COPY (?!--from)(\S+)", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert ignore[1] == "*"
    allowed = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    assert {source.split("/")[0] for source in copied} == {name.split("/")[0] for name in allowed}


def make_images(folder: Path, *settings: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """`make images` with a docker that writes its first call down."""
    said, tool = folder / "said", folder / "docker"
    tool.write_text(f'#!/bin/sh\ntest "$1" = build && printf "%s\\n" "$@" >{said}\necho x has 5 bytes\n')
    tool.chmod(0o755)
    command = ["make", "--silent", "images", f"DOCKER={tool}", *settings]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done, said.read_text() if said.exists() else ""


def test_one_command_builds_by_mirrors_or_for_the_cpu(tmp_path: Path) -> None:
    done, said = make_images(
        tmp_path,
        "TARGET=cpu",
        "TORCH_INDEX=https://t.test/cpu",
        "PIP_INDEX_URL=https://p.test/simple",
        "APT_PACKAGES=a b",
    )
    assert done.returncode == 0, done.stderr
    for argument in ("TORCH_INDEX=https://t.test/cpu", "PIP_INDEX_URL=https://p.test/simple", "APT_PACKAGES=a b"):
        assert f"--build-arg\n{argument}\n" in said
    for target in ("cpu", "cuda"):  # an argument is known to the stage that declares it, and pip reads it there
        instructions = stages()[target]
        first = next(at for at, line in enumerate(instructions) if "pip install" in line)
        assert "ARG PIP_INDEX_URL" in instructions[:first]
        assert all("--mount=type=secret,id=pip" in line for line in instructions if "pip install" in line)
    done, said = make_images(tmp_path)
    assert done.returncode == 0, done.stderr
    assert not re.search("PIP_INDEX_URL|TORCH_INDEX|APT_PACKAGES", said)  # an empty one would be no index at all


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("TARGET=cpu", "TARGET=cpu needs TORCH_INDEX=URL of PyTorch's index of CPU wheels"),
        ("PIP_INDEX_URL=https://me:word@p.test/simple", "--secret id=pip,src=pip.conf"),
    ],
)
def test_a_build_that_cannot_be_is_refused_before_docker(tmp_path: Path, setting: str, message: str) -> None:
    done, said = make_images(tmp_path, setting)
    assert done.returncode
    assert message in done.stderr
    assert not said


def docker(*command: str, network: str = "none") -> subprocess.CompletedProcess[str]:
    """The image with a read-only root and no rights."""
    closed = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    run = ["docker", "run", "--rm", "--network", network, *closed, IMAGE, *command]
    return subprocess.run(run, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def image() -> str:
    found = (
        shutil.which("docker")
        and not subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode
    )
    if not found:
        pytest.skip(f"no image {IMAGE} here: make images, or name another one in CMAPKD_IMAGE")
    return IMAGE


@pytest.mark.slow
def test_the_image_runs_a_stage_with_a_read_only_root(image: str) -> None:
    done = docker("python", "-m", "cmapkd_core.stages.prepare", "--recipe", "tiny", "--root", "/tmp/x")
    assert done.returncode == 0, done.stderr
    assert "pictures" in done.stdout


@pytest.mark.slow
def test_the_image_starts_two_ranks(image: str) -> None:
    ranks = ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "--", "cmapkd_core.stages.prepare"]
    done = docker(
        *ranks, "--recipe", "tiny", "--root", "/tmp/x", "--check", "here:0", network="host"
    )  # ranks find each other by name
    assert done.returncode == 0, done.stderr
    assert "user 10001" in done.stdout
    assert "2 on 1 machine reach each other" in done.stdout


@pytest.mark.slow
def test_manifests_made_by_the_image_say_its_commit(image: str) -> None:
    label = '{{index .Config.Labels "org.opencontainers.image.revision"}}'
    inspected = subprocess.run(["docker", "inspect", "-f", label, image], capture_output=True, text=True, check=True)
    done = docker("python", "-c", "from cmapkd_core.stages.commit import commit; print(commit())")
    assert done.stdout == inspected.stdout != "unknown\n"


@pytest.mark.slow
def test_the_image_has_no_pip_and_no_secret(image: str) -> None:
    assert docker("python", "-c", "import pip").returncode
    inspected = subprocess.run(["docker", "history", "--no-trunc", image], capture_output=True, text=True, check=True)
    assert not re.search(r"PASSWORD|SECRET|TOKEN|://[^/ ]+@", inspected.stdout)
