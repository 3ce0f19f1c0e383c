"""Publish a view of trajectories as a dataset: redacted, with a card, on the hub or in a folder.

    python -m train.publish --view_file artifacts/views/long.parquet --out artifacts/published
    python -m train.publish --view_file artifacts/views/long.parquet --out artifacts/published \
        --repo_id owner/name --private true

The token is read where the hub's client finds it (`HF_TOKEN`); it is never logged.
"""

from __future__ import annotations

import io
import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curt.config import Config, load_config
from curt.files import whole_folder
from curt.logs import configure_logging
from train.dataset_card import render_card
from train.redaction import redact

logger = logging.getLogger(__name__)


class PublishConfig(Config):
    """What to publish and where."""

    view_file: Path
    """Parquet file of `train.views`."""
    out: Path
    """Folder to make: the card and data/train.parquet."""
    repo_id: str | None = None
    """owner/name on the hub; without it only the folder is made."""
    private: bool = True
    """Whether a new repository is private."""
    endpoint: str | None = None
    """Another hub's address."""
    title: str = "Length-penalised reasoning on Chinese criminal cases"
    """First line of the card."""
    license: str = "apache-2.0"
    """For the card; generated cases carry no other rights, real ones may."""


def main() -> None:
    """Make the folder and push it; exits with a message when something is wrong."""
    config = load_config(PublishConfig)
    configure_logging()
    try:
        prepare(config)
        if config.repo_id:
            logger.info("published as %s", push(config))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def prepare(config: PublishConfig) -> Path:
    """Write the redacted table and its card to `out`, whole or not at all.

    Raises ValueError when the view can't be read or has no rows.
    """
    try:
        table = pq.read_table(config.view_file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{config.view_file} can't be read ({error}): make it with train.views"
        ) from error
    if not table.num_rows:
        raise ValueError(f"{config.view_file} has no rows: make it with wider filters")
    table, redactions = redact_table(table)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    with whole_folder(config.out) as folder:
        (folder / "data").mkdir()
        (folder / "data" / "train.parquet").write_bytes(buffer.getvalue())
        (folder / "README.md").write_text(
            render_card(table, redactions, title=config.title, license_id=config.license),
            encoding="utf-8",
        )
    logger.info("%d rows in %s, redacted: %s", table.num_rows, config.out, dict(redactions))
    return config.out


def redact_table(table: pa.Table) -> tuple[pa.Table, Counter[str]]:
    """The table with every text column redacted and token ids left out: they spell the text."""
    if "token_ids" in table.column_names:
        table = table.drop_columns(["token_ids"])
    counts: Counter[str] = Counter()

    def cleaned(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text, found = redact(value)
        counts.update(found)
        return text

    for index, column in enumerate(table.schema):
        if pa.types.is_string(column.type) and not column.name.endswith("_sha256"):
            values = [cleaned(value) for value in table.column(index).to_pylist()]
            table = table.set_column(index, column, pa.array(values, pa.string()))
    return table, counts


def push(config: PublishConfig) -> str:
    """Create the repository where it does not exist, upload the folder as one commit, return its
    address.

    Raises ValueError when the hub refuses or can't be reached; the folder stays as it is.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    assert config.repo_id
    hub = HfApi(endpoint=config.endpoint)
    try:
        hub.create_repo(config.repo_id, repo_type="dataset", private=config.private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=config.repo_id,
            repo_type="dataset",
            folder_path=config.out,
            commit_message="Redacted trajectories and their card",
        )
    except HfHubHTTPError as error:
        raise ValueError(
            f"the hub answered {error.response.status_code} for {config.repo_id}: check HF_TOKEN "
            "and the name, then run the same command again"
        ) from error
    except httpx.HTTPError as error:
        raise ValueError(
            f"the hub can't be reached ({type(error).__name__}): run the same command again"
        ) from error
    return str(commit.repo_url)


if __name__ == "__main__":
    main()
