from __future__ import annotations

from pathlib import Path

import pytest

from loadtest._client import Client, read_api_key, trust_in


def test_a_key_comes_from_its_file_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CURT_API_KEY", raising=False)
    assert read_api_key("") is None
    monkeypatch.setenv("CURT_API_KEY", "from-environment")
    assert read_api_key("") == "from-environment"
    path = tmp_path / "api.key"
    path.write_text("from-file\n")
    assert read_api_key(str(path)) == "from-file"


@pytest.mark.parametrize("text", ["", "two secret\nlines", "密钥secret", "tab\tsecret"])
def test_an_unusable_key_is_refused_without_a_word_of_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "api.key"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"api\.key") as caught:
        read_api_key(str(path))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_client_does_not_show_its_key() -> None:
    client = Client("https://127.0.0.1:1/", 1.0, "sk-secret")
    assert "sk-secret" not in repr(client)
    assert client.trust is not None


def test_certificates_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("no certificate")
    with pytest.raises(ValueError, match="give a PEM file"):
        trust_in(str(path))
