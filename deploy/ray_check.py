"""Check the configuration of Ray Serve by Ray's own schema, in the environment that has Ray.

    .venv-ray/bin/python -m deploy.ray_check [deploy/ray_serve.yaml]

`deploy.check` runs it. The schema must accept the file, every key must be one that Ray knows (it
ignores others), and the application that the file names must have the deployments it configures.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic_settings import CliPositionalArg

from curt.config import Config, run


class RayCheckConfig(Config):
    """What to check."""

    file: CliPositionalArg[Path] = Path(__file__).with_name("ray_serve.yaml")
    """Configuration of Ray Serve."""


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


def work(config: RayCheckConfig) -> None:
    """Raise ValueError with all that is wrong, where something is."""
    if found := list(problems(config.file)):
        raise ValueError("\n".join(found))


if __name__ == "__main__":
    run(RayCheckConfig, work, expected=(ValueError, ImportError, AttributeError, OSError))
