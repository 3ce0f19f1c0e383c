from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from curt.corpus.__main__ import main
from curt.corpus.build.card import render_card
from curt.corpus.build.pipeline import CorpusConfig, build_corpus
from curt.corpus.store import read_cases
from tests.curt.corpus.build.test_dedup import FACT, OTHER
from tests.curt.corpus.read.test_judgments import document

THIRD = "2018年，被告人赵某多次进入邻村农户家中，窃取家禽数只，销赃得款五百元，已全部挥霍。"


def cail_line(fact: str, months: int = 8) -> str:
    term = {"death_penalty": False, "life_imprisonment": False, "imprisonment": months}
    meta = {"relevant_articles": [264], "accusation": ["盗窃"], "punish_of_money": 0,
            "criminals": ["某"], "term_of_imprisonment": term}  # fmt: skip
    return json.dumps({"fact": fact, "meta": meta}, ensure_ascii=False)


def invent(rng: random.Random) -> str:
    """A fact that shares little with another."""
    places = ((rng.randrange(0xB0, 0xD7), rng.randrange(0xA1, 0xFA)) for _ in range(120))
    words = "".join(bytes(place).decode("gb2312") for place in places)  # simplified characters
    return f"公诉机关指控，被告人{words}，价值{rng.randrange(1000, 99999)}元。"


@pytest.fixture
def cail(tmp_path):
    folder = tmp_path / "cail"
    folder.mkdir()
    sets = {
        "train": [FACT, FACT + "。", OTHER, f"另，{THIRD}", "{broken"],
        "dev": [OTHER],
        "test": [THIRD, THIRD],
    }
    for split, facts in sets.items():
        rows = [f if f == "{broken" else cail_line(f) for f in facts]
        (folder / f"{split}.json").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def settings(tmp_path, **overrides) -> CorpusConfig:
    return CorpusConfig(
        **{"out": tmp_path / "out", "backend": "serial", "embedding": None, **overrides}
    )


def facts_of(folder, split="train"):
    return [case.fact for case in read_cases(folder / f"{split}.jsonl")]


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_repeats_and_test_cases_are_dropped_and_everything_is_accounted_for(tmp_path, cail):
    summary = build_corpus(settings(tmp_path, cail=cail))
    assert summary["counts"] == {"test": 1, "dev": 1, "train": 1}
    assert summary["dropped"]["train"] == {"exact duplicate": 1, "test case": 2}
    assert summary["dropped"]["test"] == {"exact duplicate": 1}
    assert summary["quarantined"] == {"train": {"not JSON": 1}}
    assert summary["records"] == summary["outcomes"] == 8
    assert facts_of(tmp_path / "out") == [FACT]
    removed = rows_of(tmp_path / "out" / "removed.jsonl")
    pairs = [(r["split"], r["line"], r["of"]["split"], r["of"]["line"]) for r in removed]
    assert pairs == [
        ("test", 2, "test", 1),
        ("train", 2, "train", 1),
        ("train", 3, "dev", 1),
        ("train", 4, "test", 1),
    ]
    written = (tmp_path / "out" / "removed.jsonl").read_text(encoding="utf-8")
    assert FACT[:20] not in written  # ids, no facts
    assert not list(tmp_path.glob(".out*"))


def test_the_manifest_names_every_file_with_its_hash(tmp_path, cail):
    from curt.files import sha256

    build_corpus(settings(tmp_path, cail=cail))
    out = tmp_path / "out"
    manifest = json.loads((out / "corpus.json").read_text(encoding="utf-8"))
    assert manifest["files"].keys() == {file.name for file in out.iterdir()} - {"corpus.json"}
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == sha256(out / name)
    assert [entry["records"] for entry in manifest["inputs"]] == [2, 1, 5]


def test_a_quarantine_that_was_mended_is_given_back(tmp_path, cail):
    build_corpus(settings(tmp_path, cail=cail))
    (row,) = rows_of(tmp_path / "out" / "quarantine.jsonl")
    assert (row["reason"], row["line"], row["split"]) == ("not JSON", 5, "train")
    assert row["remedy"].startswith("complete the object")
    fact = invent(random.Random(1))
    mended = tmp_path / "mended.jsonl"
    mended.write_text(json.dumps(row | {"record": cail_line(fact)}), encoding="utf-8")
    summary = build_corpus(settings(tmp_path, cail=cail, mended=[mended], out=tmp_path / "again"))
    assert facts_of(tmp_path / "again") == [FACT, fact]
    assert summary["records"] == 9  # the broken line is still there
    alone = build_corpus(settings(tmp_path, mended=[mended], out=tmp_path / "alone"))
    assert alone["counts"] == {"test": 0, "dev": 0, "train": 1}


def test_strict_ends_with_the_first_bad_record_and_leaves_no_corpus(tmp_path, cail):
    with pytest.raises(ValueError, match=r"train.json, line 5: not JSON: mend it"):
        build_corpus(settings(tmp_path, cail=cail, strict=True))
    assert not (tmp_path / "out").exists()


def test_cases_that_break_a_rule_are_counted_by_its_name(tmp_path, cail):
    with open(cail / "train.json", "a", encoding="utf-8") as file:
        file.write(cail_line("盗窃手机一部。") + "\n" + cail_line("上诉人赵某不服。" + FACT[30:]))
    dropped = build_corpus(settings(tmp_path, cail=cail))["dropped"]["train"]
    assert (dropped["too short"], dropped["kind"]) == (1, 1)


def test_filters_can_be_switched_off(tmp_path, cail):
    config = settings(tmp_path, cail=cail, near_duplicates=None, contamination=None)
    assert build_corpus(config)["counts"] == {"test": 2, "dev": 1, "train": 4}


def test_the_same_story_in_other_words_is_dropped(tmp_path):
    rng = random.Random(1)
    told = (
        "2020年3月5日14时20分，被告人张某窃取手机1部，价值3512元。2020年3月9日，张某在某市被抓获，"
        "退赔3000元。张某曾于2011年7月因盗窃被判刑8个月。"
    )
    again = (
        "张某曾于2011年7月因盗窃被判刑8个月。2020年3月9日，张某被抓获于某市，其退赔3000元。此前的"
        "2020年3月5日14时20分，手机1部被其窃取，价值3512元。"
    )
    sibling = told.replace("2020年3月5日14时20分", "2017年8月2日9时5分").replace("3512", "781")
    sibling = sibling.replace("2020年3月9日", "2017年9月1日").replace("2011年7月", "2009年2月")
    facts = [told, *(invent(rng) for _ in range(40)), sibling, again]
    folder = tmp_path / "cail"
    folder.mkdir()
    (folder / "train.json").write_text("\n".join(map(cail_line, facts)), encoding="utf-8")
    config = settings(
        tmp_path, cail=folder, files={"train": ["train.json"]}, embedding="lsa", alike=0.7,
        near_duplicates=0.95,
    )  # fmt: skip
    assert build_corpus(config)["dropped"] == {"train": {"other words": 1}}
    assert sibling in facts_of(tmp_path / "out")
    assert again not in facts_of(tmp_path / "out")


def big_corpus(tmp_path, count=400):
    rng = random.Random(3)
    folder = tmp_path / "cail"
    folder.mkdir(exist_ok=True)
    facts = [invent(rng) for _ in range(count)]
    facts += [fact.replace("，", "、", 1)[:-5] for fact in facts[: count // 10]]
    lines = [*map(cail_line, facts), "{", cail_line("短。")]
    (folder / "train.json").write_text("\n".join(lines), encoding="utf-8")
    (folder / "dev.json").write_text("\n".join(map(cail_line, facts[5:9])), encoding="utf-8")
    (folder / "test.json").write_text(cail_line(facts[20]), encoding="utf-8")
    return folder


@pytest.fixture
def _ray():
    yield
    import ray

    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("_ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::ResourceWarning")
def test_every_backend_gives_the_same_files(tmp_path):
    cail = big_corpus(tmp_path)
    hashes = {}
    for backend in ("serial", "datasets", "ray"):
        config = settings(
            tmp_path, cail=cail, backend=backend, shard_records=60, embedding="lsa",
            out=tmp_path / backend,
        )  # fmt: skip
        summary = build_corpus(config)
        hashes[backend] = {
            name: entry["sha256"]
            for name, entry in summary["files"].items()
            if name.endswith(".jsonl")
        }
        assert summary["dropped"]["train"]["near duplicate"] >= 38
        assert summary["dropped"]["train"]["test case"] == 5
    assert hashes["serial"] == hashes["datasets"] == hashes["ray"]
    assert len(hashes["serial"]) == 5


@pytest.mark.slow
def test_a_killed_build_goes_on_and_ends_as_an_unbroken_one(tmp_path):
    cail = big_corpus(tmp_path, count=3000)
    whole = build_corpus(settings(tmp_path, cail=cail, shard_records=50, out=tmp_path / "whole"))
    command = [
        sys.executable, "-m", "curt.corpus", "build", "--cail", str(cail), "--embedding", "null",
        "--backend", "serial", "--shard_records", "50", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    context = tmp_path / ".out.build"
    while len(list(context.glob("*.parquet"))) < 5:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    done = {file: file.stat().st_mtime_ns for file in context.glob("*.parquet")}
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "going on with the build" in result.stderr
    assert len(done) < 60
    again = json.loads((tmp_path / "out" / "corpus.json").read_text(encoding="utf-8"))
    for name in ("train.jsonl", "removed.jsonl", "quarantine.jsonl"):
        assert again["files"][name] == whole["files"][name]
    assert not context.exists()


def test_a_stopped_build_of_other_settings_is_not_gone_on_with(tmp_path, cail, caplog):
    context = tmp_path / ".out.build"
    context.mkdir()
    (context / "plan.sha256").write_text("another")
    (context / "00000.parquet").write_text("half")
    with caplog.at_level("INFO"):
        build_corpus(settings(tmp_path, cail=cail))
    assert "other settings: starting anew" in caplog.text


def test_parquet_sets_can_be_built_upon(tmp_path, cail):
    first = build_corpus(settings(tmp_path, cail=cail, format="parquet"))
    assert first["counts"] == {"test": 1, "dev": 1, "train": 1}
    again = build_corpus(settings(tmp_path, cases=tmp_path / "out", out=tmp_path / "again"))
    assert again["counts"] == first["counts"]
    assert facts_of(tmp_path / "again") == [FACT]


def test_generated_cases_are_not_filtered(tmp_path):
    """They follow templates: every case resembles another."""
    config = settings(tmp_path, train=50, dev=5, test=5)
    summary = build_corpus(config)
    assert summary["counts"] == {"test": 5, "dev": 5, "train": 50}
    assert sum(summary["sets"]["train"]["terms"].values()) == 50


def test_judgments_are_split_by_document(tmp_path):
    ruling = "一、被告人甲某犯盗窃罪，判处拘役五个月。二、被告人乙某犯盗窃罪，判处拘役四个月。"
    founds = [
        f"{FACT}第{n}起，地点为{n * 977}号仓库，数量{n * 31}件，时间为{n}月。" * 2
        for n in range(30)
    ]
    rows = [json.dumps({"document": document(ruling, found=f"经审理查明，{f}")}) for f in founds]
    path = tmp_path / "judgments.jsonl"
    path.write_text("\n".join([*rows, "{"]), encoding="utf-8")
    config = settings(tmp_path, judgments=path, near_duplicates=None, contamination=None)
    summary = build_corpus(config)
    assert sum(summary["counts"].values()) == 60
    assert summary["quarantined"]["reading"] == {"not JSON": 1}
    assert (summary["records"], summary["outcomes"]) == (31, 61)
    sets = {
        split: {
            case.id.rsplit("-", 1)[0] for case in read_cases(tmp_path / "out" / f"{split}.jsonl")
        }
        for split in ("train", "dev", "test")
    }
    assert not sets["train"] & (sets["dev"] | sets["test"])
    path.write_text("\n".join([*rows, rows[0]]), encoding="utf-8")
    again = build_corpus(
        settings(tmp_path, judgments=path, near_duplicates=0.99, contamination=None)
    )
    dropped = sum(sum(counts.values()) for counts in again["dropped"].values())
    assert dropped == 2  # both defendants of the copy, and none of one document for the other


def test_the_card_counts_and_quotes_no_case(tmp_path, cail):
    build_corpus(settings(tmp_path, cail=cail))
    page = (tmp_path / "out" / "card.html").read_text(encoding="utf-8")
    assert "exact duplicate" in page
    assert "complete the object" in page
    assert FACT[:12] not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_the_card_of_an_older_summary_names_no_columns(tmp_path, cail):
    summary = build_corpus(settings(tmp_path, cail=cail))
    for entry in summary["inputs"]:
        del entry["columns"]
    assert "columns taken" in render_card(summary)


def test_a_table_of_other_names_is_read_by_a_map_and_the_card_tells_it(tmp_path):
    rows = ["案情经过,罪名,判几个月", f'"{FACT}",盗窃罪,8', f'"{THIRD}",盗窃罪,9']
    (tmp_path / "x.csv").write_text("\n".join(rows), encoding="utf-8")
    names = {"fact": "案情经过", "term": "判几个月"}
    summary = build_corpus(settings(tmp_path, cail=tmp_path / "x.csv", map=names))
    assert sum(summary["counts"].values()) == 2
    assert summary["inputs"][0]["columns"] == names | {"charges": "罪名"}
    page = (tmp_path / "out" / "card.html").read_text(encoding="utf-8")
    assert "fact: <code>案情经过</code>" in page
    assert "articles: those that define the charges" in page


def test_a_folder_of_judgments_holds_one_a_file(tmp_path):
    folder = tmp_path / "judgments"
    (folder / "2020").mkdir(parents=True)
    ruling = "被告人甲某犯盗窃罪，判处拘役五个月。"
    (folder / "a.txt").write_text(document(ruling), encoding="utf-8")
    (folder / "2020" / "b.html").write_text(
        f"<p>{document(ruling, found=f'经审理查明，{THIRD * 2}')}</p>", encoding="gb18030"
    )
    summary = build_corpus(settings(tmp_path, judgments=folder))
    assert (summary["records"], sum(summary["counts"].values())) == (2, 2)


@pytest.mark.parametrize(("fact", "status"), [(FACT, 0), ("短。", 1)])
def test_a_build_that_keeps_no_case_ends_with_another_status(
    tmp_path, monkeypatch, caplog, fact, status
):
    (tmp_path / "x.json").write_text(cail_line(fact), encoding="utf-8")
    arguments = ["build", "--cail", str(tmp_path), "--files", '{"train": ["x.json"]}']
    arguments += ["--out", str(tmp_path / "out"), "--backend", "serial", "--embedding", "null"]
    monkeypatch.setattr(sys, "argv", ["curt.corpus", *arguments])
    monkeypatch.setattr("curt.config.configure_logging", lambda: None)
    if status:
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == status
    else:
        main()
    assert ("no case was kept" in caplog.text) == bool(status)
    assert (tmp_path / "out" / "quarantine.jsonl").is_file()


def test_a_build_without_pyarrow_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        build_corpus(settings(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--cail", "a", "--judgments", "b"], "not both"),
        (["build", "--cail", "nowhere"], "no file .*nowhere/test.json"),
        (["build", "--hub_splits", '{"validation": "x"}', "--hub", "x"], "use test, dev, train"),
        (["build", "--cail", "x", "--map", '{"facts": "x"}'], "map names .*'facts'.*: use fact"),
        (["built"], "no command 'built'"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["curt.corpus", *arguments, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=message):
        main()
    assert not (tmp_path / "out").exists()
