from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GROUPS = sorted(set(PROJECT["dependency-groups"]) - {"gpu"})
STAGES = ("benchmarks", "compress", "loadtest", "serve", "train")
MAX_TRACKED_BYTES = 1 << 20
# What a benchmark compares with, in an environment of its own.
PEERS = {"gguf", "llama_cpp", "openvino", "openvino_genai"}
PIN = re.compile(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)")


@functools.cache
def tracked_files() -> tuple[str, ...]:
    """Files that are in the repository or would be with the next commit."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    which = ["--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", *which],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return tuple(name for name in listed.stdout.split("\0") if name)


def members(group: str) -> Iterator[Requirement]:
    for entry in PROJECT["dependency-groups"][group]:
        if isinstance(entry, dict):
            yield from members(entry["include-group"])
        else:
            yield Requirement(entry)


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    matches = [PIN.fullmatch(line) for line in lines if line and not line.startswith("#")]
    assert all(matches), "constraints.txt: use name==version, canonical name, no local part"
    return {match[1]: match[2] for match in matches if match}


def reachable(group: str) -> set[str]:
    """Distributions a group brings in, as installed here."""
    found: set[str] = set()
    asked: set[tuple[str, frozenset[str]]] = set()
    queue = list(members(group))
    while queue:
        wanted = queue.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if (name, extras) in asked:
            continue
        asked.add((name, extras))
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue
        found.add(name)
        for text in needed:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in {"", *extras}):
                queue.append(requirement)
    return found


def imported_modules(folder: str) -> set[str]:
    modules: set[str] = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    return modules - set(sys.stdlib_module_names) - {"curt", *STAGES}


@pytest.mark.parametrize("group", GROUPS)
def test_every_package_of_a_group_is_pinned(group: str) -> None:
    wanted = {canonicalize_name(requirement.name) for requirement in members(group)}
    assert wanted
    assert wanted - pins().keys() == set()


def test_pip_is_pinned_and_no_cuda_package_is() -> None:
    pinned = pins()
    assert "pip" in pinned
    assert [name for name in pinned if name.startswith("nvidia-cu") or name == "triton"] == []


def test_constraints_name_no_address() -> None:
    files = sorted(ROOT.glob("constraints*.txt"))
    assert files
    assert [file.name for file in files if "://" in file.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_only_what_its_group_installs(stage: str) -> None:
    owners = packages_distributions()
    available = reachable(stage) | {canonicalize_name(r.name) for r in members("gpu")}
    foreign = {
        module
        for module in imported_modules(stage)
        # a module of a package that is not installed here is known by its own name alone
        if not available & {canonicalize_name(owner) for owner in owners.get(module, [module])}
    }
    assert foreign - PEERS == set()


def test_every_make_target_of_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL)
    named = {target for span in code for target in re.findall(r"\bmake ([a-z][a-z-]*)", span)}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named - known == set()


def defined_in(file: Path) -> set[str]:
    """Dotted names of what a module defines: functions, classes, what is in them, constants."""
    names: set[str] = set()

    def collect(nodes: list[ast.stmt], prefix: str) -> None:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
                collect(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names.update(prefix + t.id for t in targets if isinstance(t, ast.Name))

    collect(ast.parse(file.read_bytes()).body, "")
    return names


def test_every_place_in_the_code_that_the_docs_name_is_there() -> None:
    named = re.compile(r"`([\w/-]+(?:/[\w.-]+)*\.(?:py|html|css|js|sh|toml))(?::([\w.]+))?`")
    files = set(tracked_files())
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    checked, missing = 0, []
    for page in pages:
        if page.name == "experiments.md":  # a log: it speaks of the code as it was
            continue
        for path, name in named.findall(page.read_text(encoding="utf-8")):
            # a bare file name: its page says whose folder it means
            if "/" not in path or path.startswith("artifacts/"):
                continue
            checked += 1
            if path not in files:
                missing.append(f"{page.name}: {path}")
            elif name and name not in defined_in(ROOT / path):
                missing.append(f"{page.name}: {path}:{name}")
    assert checked > 20
    assert missing == []


def test_no_tracked_file_is_over_a_mebibyte() -> None:
    files = [ROOT / name for name in tracked_files()]
    assert ROOT / "pyproject.toml" in files
    sizes = {str(f.relative_to(ROOT)): f.stat().st_size for f in files if f.is_file()}
    assert {name: size for name, size in sizes.items() if size > MAX_TRACKED_BYTES} == {}


def test_import_contracts_cover_every_package() -> None:
    settings = PROJECT["tool"]["importlinter"]
    packages = {file.parent.name for file in ROOT.glob("*/__init__.py")} - {"tests"}
    assert set(settings["root_packages"]) == packages == {"curt", *STAGES}
    layers = {contract["name"]: contract["layers"] for contract in settings["contracts"]}
    assert all(contract["type"] == "layers" for contract in settings["contracts"])
    stages = sorted(set(STAGES) - {"benchmarks"})  # a benchmark may measure any stage
    assert ["benchmarks", " | ".join(stages), "curt"] in [
        [" | ".join(sorted(layer.split(" | "))) for layer in each] for each in layers.values()
    ]
    assert any(contract.get("containers") == ["curt"] for contract in settings["contracts"])


def test_only_the_tests_of_benchmarks_import_benchmarks() -> None:
    """A benchmark may measure any stage; whoever needed one would have to keep it."""
    importers = set()
    for name in tracked_files():
        file = ROOT / name
        if file.suffix != ".py" or not file.is_file():
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            if any(module.split(".")[0] == "benchmarks" for module in names):
                importers.add("/".join(Path(name).parts[:2]))
    others = {name for name in importers if not name.startswith("benchmarks/")}
    assert others == {"tests/benchmarks"}


def test_the_licence_is_the_one_declared() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert text.lstrip().startswith("Apache License")
    assert "END OF TERMS AND CONDITIONS" in text
    assert "Copyright 2026 The Curt authors" in text


def test_the_dockerfile_copies_only_what_exists_and_is_let_in() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copies = [line for line in lines if line.startswith("COPY ") and "--from=" not in line]
    copied = [word for line in copies for word in line.split()[1:-1]]
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert [name for name in copied if f"!{name}" not in allowed] == []


def test_compose_pins_its_images_and_prometheus_scrapes_the_server() -> None:
    deploy = ROOT / "deploy"
    compose = yaml.safe_load((deploy / "compose.yaml").read_text(encoding="utf-8"))
    prometheus = yaml.safe_load((deploy / "prometheus.yml").read_text(encoding="utf-8"))
    services = compose["services"]
    images = {name: service["image"] for name, service in services.items()}
    assert [i for i in images.values() if not re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", i)] == []
    (job,) = prometheus["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in services
    assert f"EXPOSE {port}" in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert images["server"] == f"curt:{PROJECT['project']['version']}"
