from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from curt.artifact import ArtifactError, write_artifact
from curt.files import sha256, write_json
from serve.settings import Settings, unknown_variables
from tests.serve.fake_engine import MANIFEST


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURT_MODEL", "runs/model")
    monkeypatch.setenv("CURT_WORKERS", "3")
    settings = Settings()  # type: ignore[call-arg]
    assert (settings.model, settings.workers, settings.default_deadline_ms) == (
        Path("runs/model"), 3, 400,
    )  # fmt: skip


@pytest.mark.parametrize("change", [{"workers": 0}, {"port": 70_000}, {"default_deadline_ms": 5}])
def test_values_out_of_range_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Settings(model=Path("m"), **change)  # type: ignore[arg-type]


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENGINE_URL", "RATE_PER_S", "REDIS_URL", "CACHE_SECRET", "KEYS_FILE", "WORKERS"):
        monkeypatch.setenv(f"CURT_{name}", "")
    settings = Settings(model=Path("m"))
    assert settings == Settings(model=Path("m"), workers=settings.workers)
    assert (settings.engine_url, settings.rate_per_s, settings.keys_file) == (None, None, None)


@pytest.mark.parametrize("secret", [None, "", "short"])
def test_redis_without_a_secret_is_refused(secret: str | None) -> None:
    values = {"redis_url": "redis://127.0.0.1:6379/0", "cache_secret": secret}
    with pytest.raises(ValidationError, match="openssl rand"):
        Settings(model=Path("m"), **values)  # type: ignore[arg-type]
    Settings(model=Path("m"), **values | {"cache_secret": "0" * 32})  # type: ignore[arg-type]


def test_a_fact_of_the_greatest_length_fits_the_body_however_it_is_written() -> None:
    settings = Settings(model=Path("m"))
    assert settings.max_fact_chars * len("\\u76d7") < settings.max_body_bytes


def test_a_misspelt_variable_is_named_with_its_likely_meaning() -> None:
    found = unknown_variables({"CURT_WROKERS": "1", "CURT_PORT": "1", "PATH": "/bin"})
    assert found == ["CURT_WROKERS is no setting; CURT_WORKERS?"]


def test_a_folder_that_is_no_servable_model_is_refused(tmp_path: Path, micro_model: Path) -> None:
    with pytest.raises(ArtifactError, match="unfinished"):
        Settings(model=tmp_path).manifest()
    with pytest.raises(ArtifactError, match="ort-genai is needed"):
        Settings(model=micro_model).manifest()


def test_a_model_that_its_gate_refused_is_served_only_when_told(tmp_path: Path) -> None:
    with write_artifact(tmp_path / "m", MANIFEST.model_dump(exclude={"tools", "created", "files"})):
        pass
    verdict = {"refused": ["charges"], "manifest_sha256": sha256(tmp_path / "m" / "manifest.json")}
    write_json(tmp_path / "m" / "gate.json", verdict)
    with pytest.raises(ArtifactError, match="refused by its gate for charges: CURT_ALLOW_REFUSED"):
        Settings(model=tmp_path / "m").manifest()
    assert Settings(model=tmp_path / "m", allow_refused=True).manifest().stage == MANIFEST.stage


def test_the_models_own_reader_stands_in_unless_another_classifier_is_named(tmp_path: Path) -> None:
    settings = Settings(model=tmp_path)
    assert settings.classifier_folder() is None
    (tmp_path / "reader").mkdir()
    assert settings.classifier_folder() == tmp_path / "reader"
    other = settings.model_copy(update={"fallback": tmp_path / "other"})
    assert other.classifier_folder() == tmp_path / "other"
