"""What Ray Serve itself says of its configuration, in the environment that has Ray.

    .venv-ray/bin/python -m deploy.ray_check [deploy/ray_serve.yaml]

`deploy.check` runs it. The schema must take the file, no key may be one that Ray passes over, and
the application that the file names must have the deployments that it configures.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


def unknown_keys(told: Any, taken: Any, where: str = "") -> Iterator[str]:
    """Keys of a file that the schema left out when it read it."""
    if isinstance(told, dict) and isinstance(taken, dict):
        for key, value in told.items():
            place = f"{where}.{key}".lstrip(".")
            if key in taken:
                yield from unknown_keys(value, taken[key], place)
            else:
                yield place
    elif isinstance(told, list) and isinstance(taken, list):
        for index, (value, other) in enumerate(zip(told, taken, strict=True)):
            yield from unknown_keys(value, other, f"{where}[{index}]")


def problems(file: Path) -> Iterator[str]:
    """What is wrong with a configuration. Raises ValueError where Ray's schema refuses it."""
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import ServeDeploySchema

    told = yaml.safe_load(file.read_text(encoding="utf-8"))
    schema = ServeDeploySchema.model_validate(told)
    for place in unknown_keys(told, schema.model_dump(exclude_unset=True)):
        yield f"{place}: Ray Serve knows no such key"
    for application in schema.applications:
        for deployment in application.deployments:
            scaling = deployment.autoscaling_config  # a plain dict to that schema
            if isinstance(scaling, dict):
                taken = AutoscalingConfig.model_validate(scaling).model_dump(exclude_unset=True)
                for place in unknown_keys(scaling, taken, f"{deployment.name}.autoscaling_config"):
                    yield f"{place}: Ray Serve knows no such key"
        module, _, name = application.import_path.partition(":")
        bound = getattr(importlib.import_module(module), name)._bound_deployment.name
        configured = [deployment.name for deployment in application.deployments]
        if configured != [bound]:
            yield f"{application.import_path} has the deployment {bound}, not {configured}"


def main() -> None:
    """Say what is wrong; the exit status is 1 where something is."""
    given = sys.argv[1:] or [str(Path(__file__).with_name("ray_serve.yaml"))]
    try:
        found = list(problems(Path(given[0])))
    except (ValueError, ImportError, AttributeError, OSError) as error:
        found = [f"{type(error).__name__}: {error}"]
    sys.exit("\n".join(found) or None)


if __name__ == "__main__":
    main()
