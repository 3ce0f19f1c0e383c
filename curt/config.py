"""One way to configure every entry point: `python -m train.grpo @configs/x.toml --steps 10`.

Settings come from TOML files named with `@`, later ones over earlier, then from the command
line. Unknown keys are refused; `--help` shows every field. An entry point ends with

    if __name__ == "__main__":
        run(GRPOSettings, train_grpo)
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict
from pydantic_settings.sources import PydanticBaseSettingsSource

from curt.logs import configure_logging


class Config(BaseSettings):
    """Base of every entry point's configuration: frozen, unknown keys refused."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, cli_hide_none_type=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load_config` merged counts; the environment does not."""
        return (init_settings,)


class FrozenModel(BaseModel):
    """Base of a configuration's parts and of records in files: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


C = TypeVar("C", bound=Config)


def load_config(cls: type[C], argv: list[str] | None = None) -> C:
    """Build a configuration from `@file.toml` arguments and `--key value` overrides.

    Exits with a readable message (status 2) when a file is missing or a value is refused.
    """
    arguments = sys.argv[1:] if argv is None else argv
    files = [Path(a[1:]) for a in arguments if a.startswith("@")]
    overrides = [a for a in arguments if not a.startswith("@")]
    merged: dict[str, Any] = {}
    for file in files:
        if not file.is_file():
            sys.exit(f"error: no configuration file {file}")
        try:
            _merge(merged, tomllib.loads(file.read_text(encoding="utf-8")))
        except tomllib.TOMLDecodeError as error:
            sys.exit(f"error: {file}: {error}")
    source = CliSettingsSource[Any](cls, cli_parse_args=overrides, cli_exit_on_error=True)
    _merge(merged, source())
    try:
        return cls(**merged)
    except ValidationError as error:
        details = "\n".join(
            f"  {'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})"
            for e in error.errors()
        )
        sys.exit(f"error: {cls.__name__} refused\n{details}\nsee --help for every setting")


def flaws_of(error: ValidationError) -> str:
    """Where a file or body is wrong and how, in one line and without the values themselves.

    Values stay out because they may be part of a case.
    """
    flaws = error.errors(include_input=False, include_url=False)[:5]
    return "; ".join(f"{'.'.join(map(str, f['loc'])) or 'file'}: {f['msg']}" for f in flaws)


def run(
    cls: type[C],
    work: Callable[[C], int | None],
    argv: list[str] | None = None,
    *,
    expected: tuple[type[Exception], ...] = (OSError, ValueError),
) -> None:
    """The main of every entry point: read the configuration, set up logging, do the work.

    `work` may return an exit status. An error of a kind in `expected` is the user's to mend: it
    ends the process with its message and status 1; any other is a bug and shows its traceback.
    """
    config = load_config(cls, argv)
    configure_logging()
    try:
        status = work(config)
    except expected as error:
        sys.exit(f"error: {error}")
    if status:
        sys.exit(status)


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        old = into.get(key)
        if (
            isinstance(value, dict)
            and isinstance(old, dict)
            # another `type` is another part: constants of the old one would be refused
            and value.get("type", old.get("type")) == old.get("type")
        ):
            _merge(old, value)
        else:
            into[key] = value
