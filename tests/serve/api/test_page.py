"""The page at `/`: its source checked as text, and its behaviour in a headless browser."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from curt.dialogue import parse_answer
from curt.law.verdict import TERM_NAMES, Term, Verdict
from serve.answering.checks import MESSAGES
from serve.api.page.page import build_page
from serve.app import create_app
from serve.feedback.corrections import complete
from serve.feedback.feedback import FeedbackRequest
from serve.settings import Settings
from tests.serve.api.page_visitor import (
    ANSWER,
    EXAMPLE,
    FACT,
    THOUGHTS,
    Backend,
    Visitor,
    format_event,
    reply,
)
from tests.serve.asgi_client import AsgiClient
from tests.serve.fake_pool import FakePool, generation

SOURCE, POLICY = build_page()
TEXTS: dict[str, list[str]] = json.loads(
    re.search(r'id="texts">(.*?)</script>', SOURCE, re.DOTALL)[1]  # type: ignore[index]
)
SCRIPT = SOURCE.rpartition("<script>")[2].partition("</script>")[0]
VOID = {"meta", "link", "input", "br", "hr", "img"}


# ---- the source ----


class Outline(HTMLParser):
    """Collects elements and complains of a tag that is closed out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> out of turn"


@pytest.fixture(scope="module")
def outline() -> Outline:
    parser = Outline()
    parser.feed(SOURCE)
    parser.close()
    return parser


def test_the_markup_is_balanced_and_its_ids_are_unique(outline: Outline) -> None:
    ids = [attrs["id"] for _, attrs in outline.elements if "id" in attrs]
    assert outline.open == []
    assert len(ids) == len(set(ids)) > 30


def test_every_id_that_is_named_exists(outline: Outline) -> None:
    ids = {attrs.get("id") for _, attrs in outline.elements}
    named = set(re.findall(r'\$\("([\w-]+)"\)', SCRIPT))
    named |= set(re.findall(r'getElementById\("([\w-]+)"\)', SCRIPT))
    for _, attrs in outline.elements:
        for name in ("for", "aria-labelledby", "aria-describedby", "aria-controls"):
            named |= set((attrs.get(name) or "").split())
    assert len(named) > 30
    assert named - ids == set()


def test_both_languages_say_everything_with_the_same_figures() -> None:
    for key, pair in TEXTS.items():
        server_says_it = key == "notice" or key.startswith("warning_")
        assert [bool(text) for text in pair] == [not server_says_it, True], key
        zh, en = (set(re.findall(r"\{(\w+)\}", text)) for text in pair)
        assert zh == en, key


def test_every_text_that_is_named_exists_and_every_text_is_named(outline: Outline) -> None:
    named = set(re.findall(r'\bt\("(\w+)"', SCRIPT)) | set(re.findall(r'\["(status_\w+)"', SCRIPT))
    for _, attrs in outline.elements:
        named |= {v for k in ("data-text", "data-label", "data-placeholder") if (v := attrs.get(k))}
    assert named - TEXTS.keys() == set()
    made = r"(degraded|error|example|part|source|term|time|warning)_|(month|year)s?$"
    quoted = {key for key in TEXTS if f'"{key}"' in SCRIPT}
    unnamed = {key for key in TEXTS.keys() - named - quoted if not re.match(made, key)}
    assert unnamed == set()


def test_every_warning_of_the_server_has_a_translation() -> None:
    assert {f"warning_{code}" for code in MESSAGES} <= TEXTS.keys()


def test_every_kind_of_penalty_is_offered_and_has_a_text() -> None:
    kinds = json.loads(re.search(r'id="kinds">(.*?)</script>', SOURCE)[1])  # type: ignore[index]
    assert list(kinds) == list(TERM_NAMES)
    assert {f"term_{kind}" for kind in kinds} <= TEXTS.keys()


def test_the_page_is_one_small_file_that_names_no_other_address(outline: Outline) -> None:
    assert len(SOURCE.encode()) < 74_000
    assert not re.search(r"https?:|\burl\(|@import|//\w+\.\w", SOURCE)
    links = [attrs.get("src") or attrs.get("href") for _, attrs in outline.elements]
    assert {link for link in links if link} == {"data:,", "#fact", "/docs", "/metrics", "/version"}


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(scheme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", SOURCE, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[scheme]))
    pairs = [(ink, ground) for ink in ("ink", "soft") for ground in ("page", "card")]
    pairs += [(ink, "card") for ink in ("accent", "good", "warn")]
    pairs += [("on-accent", "accent"), ("warn", "warn-page"), ("ink", "bad-page")]
    pairs += [("soft", "bad-page")]
    for ink, ground in pairs:
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def contrast(one: str, other: str) -> float:
    """Ratio of two colours' relative luminance, as WCAG 2 defines it."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_application_serves_the_page_under_its_policy(settings: Settings) -> None:
    response = AsgiClient(create_app(settings, FakePool(generation(ANSWER)))).get("/")
    assert response.text == SOURCE
    assert response.headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY


# ---- a browser ----


@pytest.fixture
def backend(settings: Settings) -> Backend:
    return Backend(reply(settings))


@pytest.fixture
def address(backend: Backend) -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(backend.app(), log_config=None, ws="none", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, the system's or playwright's own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        path = next(filter(None, map(shutil.which, names)), None)
        if path is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium: install one, or run python -m playwright install chromium")
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def visitor(browser: Any, address: str) -> Iterator[Visitor]:
    visiting = Visitor(browser, address)
    yield visiting
    visiting.leave()


def test_a_verdict_is_streamed_and_shown(backend: Backend, visitor: Visitor) -> None:
    backend.pause_s = 0.15
    visitor.ask()
    visitor.wait("#cancel")
    visitor.wait("#reasoning:text-is('窃取4200元，')")
    assert visitor.tab.is_hidden("#verdict-card")
    visitor.wait("#verdict-card")
    assert visitor.text("#reasoning") == "".join(THOUGHTS)
    verdict = visitor.text("#verdict")
    assert all(part in verdict for part in ("盗窃罪", "第二百六十四条", "1年3个月", "8,000 元"))
    assert "request-7" in visitor.text("#identity")
    assert "仅供参考" in visitor.text("#notice")
    assert visitor.tab.is_hidden("#cancel")
    assert backend.asked[0] == ("/predict/stream", {"fact": FACT, "deadline_ms": 400})


def test_the_page_opens_with_an_answered_example(
    backend: Backend, visitor: Visitor, settings: Settings
) -> None:
    backend.example = reply(settings)
    visitor.tab.reload()
    visitor.wait("#verdict-card")
    assert visitor.text("#print-fact-text") == EXAMPLE
    assert visitor.text("#example-mark") == "示例"
    assert "对一个示例的回答" in visitor.text("#status")
    assert "盗窃罪" in visitor.text("#verdict")
    assert visitor.tab.input_value("#fact") == ""
    assert visitor.tab.is_hidden("#feedback")
    visitor.tab.check("#keep")  # what is kept are the visitor's own cases
    assert "陈某" not in visitor.tab.evaluate("JSON.stringify(localStorage)")
    visitor.ask()
    visitor.wait("#feedback")
    assert visitor.tab.is_hidden("#print-fact")
    assert backend.asked[0][1]["fact"] == FACT


def test_an_example_without_an_answer_says_how_to_ask(visitor: Visitor) -> None:
    visitor.wait("#status:text('没有取到示例的回答：模型仍在载入。请填写案件事实')")
    assert visitor.tab.is_hidden("#error")
    assert visitor.tab.is_hidden("#print-fact")
    visitor.tab.click("#language")
    assert "To ask, enter the facts" in visitor.text("#status")


def test_an_example_that_comes_late_does_not_replace_an_answer(
    backend: Backend, visitor: Visitor, settings: Settings
) -> None:
    backend.example, backend.example_pause_s = reply(settings), 0.5
    visitor.tab.reload()
    visitor.ask()
    visitor.wait("#verdict-card")
    visitor.tab.wait_for_timeout(700)
    assert visitor.text("#status").startswith("已得出结果")
    assert visitor.tab.is_hidden("#print-fact")


def rows_of_proposal(visitor: Visitor) -> list[list[str]]:
    visitor.wait("#proposed-card")
    return [text.split() for text in visitor.tab.locator("#proposed tr").all_inner_texts()]


def test_the_proposal_stands_beside_what_the_model_made_of_it(visitor: Visitor) -> None:
    visitor.ask()
    assert rows_of_proposal(visitor) == [
        ["罪名", "盗窃罪", "80%；抢夺罪", "10%", "盗窃罪", "一致"],
        ["法条", "《刑法》第二百六十四条", "《刑法》第二百六十四条", "一致"],
        ["刑期", "介于6个月与10个月之间", "有期徒刑1年3个月", "不一致"],
        ["后果", "4200元"],
        ["情节", "自首；退赔"],
    ]


@pytest.mark.parametrize(
    ("term", "end"),
    [
        ({"text": "15个月", "low_months": 15, "high_months": 15}, "一致"),
        ({"text": "16至20个月", "low_months": 16, "high_months": 20}, "不一致"),
        ({"text": "12个月至无期徒刑", "low_months": 12, "high_months": None}, "一致"),
        ({"text": "免予刑事处罚至6个月", "low_months": None, "high_months": 6}, "不一致"),
        ({"text": "无期徒刑至死刑", "low_months": None, "high_months": None}, "不一致"),
        ({"text": "免予刑事处罚至死刑", "low_months": None, "high_months": None}, "一致"),
    ],
)
def test_a_term_agrees_within_the_proposed_range(
    backend: Backend, visitor: Visitor, term: dict[str, Any], end: str
) -> None:
    backend.reply["proposed"]["term"] = term
    visitor.ask()
    assert rows_of_proposal(visitor)[2][-1] == end


def test_a_stand_ins_verdict_is_not_compared_with_the_proposal(
    backend: Backend, visitor: Visitor
) -> None:
    backend.reply |= {"degraded": True, "degraded_reason": "deadline", "source": "fallback"}
    visitor.ask()
    assert [row[-1] for row in rows_of_proposal(visitor)[:3]] == ["未作答"] * 3


def test_an_overruled_model_has_no_part_in_the_verdict_shown(
    backend: Backend, visitor: Visitor
) -> None:
    backend.reply |= {"source": "overruled", "reasoning": None}
    visitor.ask()
    assert visitor.text("#source") == "以分类器为准"
    assert [row[-1] for row in rows_of_proposal(visitor)[:3]] == ["另有结论，未采用"] * 3
    assert "另一结论" in visitor.text("#reasoning")


def test_ten_tenths_are_not_shown_as_certain(backend: Backend, visitor: Visitor) -> None:
    backend.reply["proposed"]["charges"][0]["probability"] = 1.0
    visitor.ask()
    assert rows_of_proposal(visitor)[0][1:4] == ["盗窃罪", "≥", "95%；抢夺罪"]


def test_without_a_proposal_there_is_nothing_to_compare(backend: Backend, visitor: Visitor) -> None:
    backend.reply["proposed"] = None
    visitor.ask()
    visitor.wait("#verdict-card")
    assert visitor.tab.is_hidden("#proposed-card")


def test_the_timeline_tells_the_servers_share_from_the_networks(visitor: Visitor) -> None:
    visitor.ask()
    visitor.wait("#time")
    key = visitor.text("#time-key")
    assert "排队 1.5 毫秒" in key
    assert "读题 5.0 毫秒" in key
    assert "网络与浏览器" in key
    assert "服务器用时 31 毫秒，时限 400 毫秒，按时" in visitor.text("#time-text")


def test_without_a_stream_the_plain_route_answers(backend: Backend, visitor: Visitor) -> None:
    backend.streams = False
    for _ in range(2):
        visitor.ask()
        visitor.wait("#verdict-card")
    assert [path for path, _ in backend.asked] == ["/predict", "/predict"]
    assert visitor.text("#reasoning") == "".join(THOUGHTS)


def test_reasoning_begins_anew_when_a_worker_died(backend: Backend, visitor: Visitor) -> None:
    pieces = [{"text": "盗", "attempt": 1}, {"text": "抢夺", "attempt": 2}]
    backend.events = [format_event("reasoning", json.dumps(piece)) for piece in pieces]
    backend.events.append(b": wait\n\n")
    backend.pause_s = 0.5
    visitor.ask()
    visitor.wait("#reasoning:text-is('抢夺')")
    visitor.wait("#error")  # the stream ended without a verdict
    assert "连接中断" in visitor.text("#error-text")


def test_events_may_be_cut_anywhere(backend: Backend, visitor: Visitor) -> None:
    whole = format_event("reasoning", json.dumps({"text": "窃取"}, ensure_ascii=False))
    whole += format_event("verdict", json.dumps(backend.reply, ensure_ascii=False))
    whole = whole.replace(b"\n", b"\r\n")
    cuts = [*range(0, 60), *range(60, len(whole), 301), len(whole)]
    backend.events = [whole[a:b] for a, b in itertools.pairwise(cuts)]
    backend.pause_s = 0.001
    visitor.ask()
    visitor.wait("#verdict-card")
    assert "盗窃罪" in visitor.text("#verdict")


def test_cancelling_aborts_the_request(backend: Backend, visitor: Visitor) -> None:
    backend.pause_s = 3
    visitor.ask()
    visitor.wait("#reasoning-card")
    visitor.tab.keyboard.press("Escape")
    visitor.wait("#cancel", "hidden")
    assert visitor.text("#status") == "已取消。"
    assert visitor.tab.is_enabled("#go")
    until_s = time.monotonic() + 5
    while not backend.hung_up:
        assert time.monotonic() < until_s, "the server never heard of it"
        time.sleep(0.02)


@pytest.mark.parametrize("streams", [True, False])
def test_an_error_is_a_sentence_with_the_request_id(
    backend: Backend, visitor: Visitor, streams: bool
) -> None:
    detail = {"code": "queue_full", "message": "too many requests are waiting"}
    backend.streams = streams
    backend.error = (503, {"error": detail, "request_id": "request-8"})
    visitor.ask()
    visitor.wait("#error")
    assert visitor.text("#error-text") == "排队的请求过多。请在 2 秒后重试。"
    assert visitor.text("#error-id") == "请求号 request-8"
    visitor.tab.click("#language")
    assert visitor.text("#error-text") == "Too many requests are waiting. Try again in 2 s."


def test_an_error_within_the_stream_is_shown(backend: Backend, visitor: Visitor) -> None:
    detail = {"code": "brand_new", "message": "something else"}
    body = {"error": detail, "request_id": "request-9"}
    backend.events = [format_event("error", json.dumps(body))]
    visitor.ask()
    visitor.wait("#error")
    assert visitor.text("#error-text") == "服务器拒绝了请求：something else（brand_new）。"


def test_no_facts_are_a_sentence_and_no_request(backend: Backend, visitor: Visitor) -> None:
    visitor.ask("  ")
    assert visitor.text("#error-text") == "请先填写案件事实。"
    assert visitor.tab.evaluate("document.activeElement.id") == "fact"
    assert backend.asked == []


def test_the_fallback_is_named_with_its_confidence(backend: Backend, visitor: Visitor) -> None:
    end = {"kind": "fixed", "kind_name": "有期徒刑", "text": ""}
    backend.reply |= {
        "degraded": True, "degraded_reason": "overloaded", "source": "fallback",
        "warnings": [{"code": "new_one", "message": "新的警告。"}],
        "confidence": {
            "charges": [
                {"name": "盗窃", "title": "盗窃罪", "probability": 0.999},
                {"name": "诈骗", "title": "诈骗罪", "probability": 0.12},
            ],
            "term_interval": {
                "low": end | {"months": 6}, "high": end | {"months": 26}, "coverage": 0.8,
            },
            "probabilities": {"charge": 0.93, "term": 0.41, "verdict": 0.4},
            "abstain": True,
        },
    }  # fmt: skip
    visitor.ask()
    visitor.wait("#degraded")
    assert "服务器繁忙" in visitor.text("#degraded")
    assert "备用分类器" in visitor.text("#degraded")
    assert visitor.text("#source") == "备用分类器"
    verdict = visitor.text("#verdict")
    assert "概率 > 99%" in verdict
    assert "其他可能：诈骗罪 12%" in verdict
    assert "介于6个月与2年2个月之间（同类案件中 80% 落在其内）" in verdict
    assert "罪名 93%；刑期 41%；整个裁判 40%" in visitor.text("#confidence")
    assert visitor.text("#warnings") == "新的警告。"
    assert visitor.tab.get_attribute("#time-text", "class") == ""


def test_each_of_several_defendants_has_a_card(
    backend: Backend, visitor: Visitor, settings: Settings
) -> None:
    first = backend.reply
    second = reply(settings, request_id="request-8", reasoning="另一人的推理。", degraded=True)
    results = [
        {"defendant": "陈某", "fact": "被告人陈某窃取手机一部。", "reply": first, "error": None},
        {"defendant": "李某", "fact": None, "reply": second, "error": None},
        {"defendant": "王某", "fact": None, "reply": None,
         "error": {"code": "overloaded", "message": "", "retry_after_s": 3}},
    ]  # fmt: skip
    backend.reply = {"request_id": "request", "results": results}
    visitor.tab.check("#each")
    visitor.ask()
    visitor.wait("#verdict-card")
    assert backend.asked == [
        ("/predict", {"fact": FACT, "deadline_ms": 400, "defendants": "each"})
    ]  # fmt: skip
    cards = visitor.tab.locator("#verdict > .card")
    assert cards.count() == 3
    texts = cards.all_inner_texts()
    assert [text.split("\n")[0][:6] for text in texts] == [
        "被告人 陈某",
        "被告人 李某",
        "被告人 王某",
    ]
    assert "盗窃罪" in texts[0]
    assert "请在 3 秒后重试" in texts[2]
    assert "备用分类器" in texts[1]
    assert visitor.text("#reasoning") == "".join(THOUGHTS)
    visitor.tab.click("#verdict > .card:nth-child(2) button")
    assert visitor.text("#reasoning") == "另一人的推理。"
    visitor.wait("#feedback")
    visitor.tab.click("#right")
    visitor.wait("#right:disabled")
    assert backend.asked[1] == ("/feedback", {"request_id": "request-8", "verdict": "correct"})


def test_a_reply_without_a_verdict_says_so(backend: Backend, visitor: Visitor) -> None:
    backend.reply |= {"degraded": True, "degraded_reason": "deadline", "defendants": []}
    visitor.ask()
    visitor.wait("#degraded")
    assert visitor.text("#degraded").endswith("没有可用的结果。")
    assert visitor.tab.is_hidden("#feedback")


def test_accuracy_is_what_the_server_measured(backend: Backend, visitor: Visitor) -> None:
    assert visitor.tab.is_hidden("#budget-box")  # it told no figure
    backend.by_budget = [{"budget": b, "exact": e, "n": 100} for b, e in ((0, 0.03), (32, 0.79))]
    visitor.tab.reload()
    visitor.wait("#budget-box")
    assert visitor.text("#budgets").split() == ["3%", "0", "79%", "32"]
    assert "还不知道 400 毫秒" in visitor.text("#budget-text")
    visitor.ask()
    visitor.wait("#verdict-card")
    assert "允许模型思考 32 个词元；按 32 词元的预算测得全对 79%" in visitor.text("#budget-text")
    assert visitor.tab.inner_text("#budgets [aria-current]").split() == ["79%", "32"]
    visitor.tab.click("#marks button:first-child")
    assert "还不知道 100 毫秒" in visitor.text("#budget-text")


def test_the_slider_goes_from_50_to_2000_by_keyboard(backend: Backend, visitor: Visitor) -> None:
    visitor.tab.focus("#deadline")
    for key, shown in (("Home", "50"), ("ArrowRight", "60"), ("End", "2000")):
        visitor.tab.keyboard.press(key)
        assert visitor.text("#deadline-text") == f"{shown} 毫秒"
    assert visitor.tab.get_attribute("#deadline", "aria-valuetext") == "2000 毫秒"
    marks = visitor.tab.eval_on_selector_all("#marks button", "all => all.map(b => b.dataset.ms)")
    assert marks == ["100", "200", "400", "800"]
    visitor.tab.fill("#fact", FACT)
    visitor.tab.focus("#fact")
    visitor.tab.keyboard.press("Control+Enter")
    visitor.wait("#verdict-card")
    assert backend.asked[0][1]["deadline_ms"] == 2000


def test_feedback_carries_the_changed_parts_in_the_replys_shape(
    backend: Backend, visitor: Visitor
) -> None:
    visitor.ask()
    visitor.wait("#feedback")
    visitor.tab.click("#wrong")
    assert visitor.tab.input_value("#its-charges") == "盗窃"
    visitor.tab.fill("#its-charges", "盗窃；诈骗")
    visitor.tab.fill("#its-months", "12")
    visitor.tab.click("#correct button")
    visitor.wait("#feedback-text:text('已收到')")
    path, body = backend.asked[-1]
    feedback = FeedbackRequest.model_validate_json(json.dumps(body))
    assert (path, feedback.request_id, feedback.verdict) == ("/feedback", "request-7", "wrong")
    assert feedback.correction is not None
    answered = parse_answer(ANSWER.removeprefix("</think>"))
    assert isinstance(answered, Verdict)
    corrected = complete(feedback.correction, answered)
    assert set(corrected.charges) == {"盗窃", "诈骗"}
    assert corrected.term == Term("fixed", 12)
    assert feedback.correction.articles is None
    assert feedback.correction.fine_yuan is None
    assert visitor.tab.is_disabled("#right")


def test_a_right_verdict_is_said_with_one_click(backend: Backend, visitor: Visitor) -> None:
    visitor.ask()
    visitor.tab.click("#right")
    visitor.wait("#feedback-text:text('已收到')")
    body = backend.asked[-1][1]
    assert FeedbackRequest.model_validate(body).verdict == "correct"


def test_feedback_is_hidden_where_the_server_takes_none(backend: Backend, visitor: Visitor) -> None:
    backend.feedback = False
    with visitor.tab.expect_response("**/feedback"):
        visitor.ask()
    visitor.wait("#verdict-card")
    assert visitor.tab.is_hidden("#feedback")


def test_history_is_kept_only_when_asked_for_and_can_be_cleared(visitor: Visitor) -> None:
    stored = "JSON.stringify(localStorage)"
    visitor.ask()
    visitor.wait("#verdict-card")
    assert "陈某" not in visitor.tab.evaluate(stored)
    visitor.tab.check("#keep")
    assert "陈某" in visitor.tab.evaluate(stored)
    visitor.tab.reload()
    visitor.tab.click("#past-list button")
    assert visitor.tab.input_value("#fact") == FACT
    assert "盗窃罪" in visitor.text("#verdict")
    assert visitor.tab.is_hidden("#feedback")
    visitor.tab.on("dialog", lambda dialog: dialog.accept())
    visitor.tab.uncheck("#keep")
    assert "陈某" not in visitor.tab.evaluate(stored)
    assert visitor.tab.is_hidden("#past-actions")


def test_an_answer_can_be_exported_as_json(visitor: Visitor) -> None:
    visitor.tab.evaluate("sessionStorage.setItem('curt.api_key', 'curt_secret')")
    visitor.ask()
    visitor.wait("#verdict-card")
    with visitor.tab.expect_download() as download:
        visitor.tab.click("#export")
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert json.loads(text)["reply"]["request_id"] == "request-7"
    assert json.loads(text)["fact"] == FACT
    assert "curt_secret" not in text


def test_the_key_is_sent_and_forgotten_with_the_tab(backend: Backend, visitor: Visitor) -> None:
    visitor.tab.click("#key-box summary")
    visitor.tab.fill("#key", "curt_secret")
    visitor.ask()
    visitor.wait("#verdict-card")
    assert backend.keys == ["Bearer curt_secret"]
    assert "curt_secret" not in visitor.tab.evaluate("JSON.stringify(localStorage)")
    assert "curt_secret" in visitor.tab.evaluate("JSON.stringify(sessionStorage)")


def test_the_language_is_switched_and_remembered(visitor: Visitor) -> None:
    visitor.ask()
    visitor.wait("#verdict-card")
    lang = "document.documentElement.lang"
    assert visitor.tab.evaluate(lang) == "zh-CN"
    visitor.tab.click("#language")
    assert visitor.tab.evaluate(lang) == "en"
    assert visitor.tab.title() == "Curt · criminal verdicts"
    assert "Imprisonment, 1 year 3 months" in visitor.text("#verdict")
    visitor.tab.reload()
    assert visitor.tab.evaluate(lang) == "en"
    assert visitor.text("#go") == "Predict"


def test_print_shows_facts_verdict_and_notice_alone(visitor: Visitor) -> None:
    visitor.ask()
    visitor.wait("#verdict-card")
    visitor.tab.fill("#fact", "another")  # edited since: the print shows what was judged
    visitor.tab.emulate_media(media="print")
    assert visitor.text("#print-fact-text") == FACT
    assert visitor.tab.is_visible("#verdict")
    assert visitor.tab.is_visible("#notice")
    for hidden in ("#ask", "#time", "#past", "#feedback", "#print", "#language", "nav"):
        assert visitor.tab.is_hidden(hidden), hidden


def test_facts_are_text_and_never_markup(backend: Backend, visitor: Visitor) -> None:
    attack = "<img src=x onerror=document.title='owned'>"
    backend.reply["reasoning"] = backend.reply["defendants"][0]["ruling"] = attack
    backend.reply["warnings"] = [{"code": attack, "message": attack}]
    visitor.ask(FACT + attack)
    visitor.wait("#verdict-card")
    assert visitor.text("#reasoning") == attack
    assert visitor.tab.query_selector("main img") is None
    assert visitor.tab.title() != "owned"


@pytest.mark.parametrize("language", ["zh-CN", "en-GB"])
def test_a_phone_never_scrolls_sideways(
    backend: Backend, browser: Any, address: str, language: str
) -> None:
    backend.by_budget = [{"budget": b, "exact": 0.5} for b in (0, 8, 16, 32, 64, 128, 256)]
    viewport = {"width": 320, "height": 640}
    visiting = Visitor(browser, address, locale=language, viewport=viewport)
    visiting.ask()
    visiting.wait("#verdict-card")
    assert visiting.tab.evaluate("document.documentElement.scrollWidth") <= 320
    visiting.leave()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_to_press_has_a_name_and_shows_its_focus(
    browser: Any, address: str, scheme: str
) -> None:
    visiting = Visitor(browser, address, color_scheme=scheme)
    visiting.ask()
    visiting.wait("#feedback")
    visiting.tab.click("body", position={"x": 1, "y": 1})
    seen = set()
    for _ in range(40):
        visiting.tab.keyboard.press("Tab")
        name, width, key = visiting.tab.evaluate(
            """() => {
              const e = document.activeElement, s = getComputedStyle(e);
              const named = e.getAttribute('aria-label') || e.innerText
                || [...(e.labels || [])].map(l => l.innerText).join('');
              return [named, parseFloat(s.outlineWidth), e.id || e.outerHTML];
            }"""
        )
        if key in seen or key.startswith("<body"):
            break
        seen.add(key)
        assert name.strip(), key
        assert width >= 2, key
    assert {"fact", "deadline", "go", "language", "print", "right", "keep"} <= seen
    visiting.leave()
