"use strict";
// key -> [Chinese, English]
const TEXTS = JSON.parse(document.getElementById("texts").textContent);
// kind of penalty -> most months, 0 for one that is not counted in months
const KINDS = JSON.parse(document.getElementById("kinds").textContent);
const EXAMPLES = [
  "2021年6月8日15时许，被告人陈某在某市某区某超市内，趁店员不备，将货架上的手机一部藏入衣内带走，经鉴定价值人民币4200元。次日，被告人陈某主动到公安机关投案，如实供述上述事实，退还手机并取得超市谅解，自愿认罪认罚。",
  "2022年1月15日22时许，被告人李某饮酒后驾驶小型轿车沿某市某路行驶，被执勤民警当场查获。经鉴定，其血液中乙醇含量为168mg/100ml。被告人李某归案后如实供述，自愿认罪认罚，系初犯。",
  "2020年9月3日19时许，被告人周某在某镇某饭店内因琐事与吴某发生争执，持啤酒瓶击打吴某头部。经鉴定，吴某的损伤程度为轻伤二级。被告人周某曾因犯盗窃罪被判处有期徒刑一年，刑满释放未满五年，归案后如实供述，已赔偿吴某损失两万元并取得谅解。",
  "2019年7月28日，被告人吕某受他人指使，骑摩托车行至某市火车站附近，趁孙某不备夺走其现金34000元后逃离。在共同犯罪中，吕某起次要作用，系从犯。归案后吕某如实供述自己的罪行。",
];
// Equal ratios, not equal differences: what a deadline buys changes with its ratio to the others.
const DEADLINES_MS = [
  50, 60, 70, 80, 90, 100, 120, 140, 160, 180, 200, 240, 280, 320, 360, 400, 480, 560, 640, 720,
  800, 960, 1120, 1280, 1440, 1600, 2000,
];
const MARKS_MS = [100, 200, 400, 800];
const DEFAULT_MS = 400;
const MAX_KEPT = 50;
const ZH = "zh", EN = "en", LANGUAGES = [ZH, EN];
const LANGUAGE_KEY = "curt.language", KEEP_KEY = "curt.keep", PAST_KEY = "curt.history";
const API_KEY = "curt.api_key";

const $ = (id) => document.getElementById(id);
const make = (tag, text, className) => {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  if (className) element.className = className;
  return element;
};

/* Storage that a browser may refuse: then what is kept lasts as long as the page. */
function openStorage(name) {
  try {
    const storage = window[name];
    storage.setItem("curt.probe", "1");
    storage.removeItem("curt.probe");
    return { lasting: true, storage };
  } catch {
    const held = new Map();
    const storage = {
      getItem: (key) => held.get(key) ?? null,
      setItem: (key, value) => held.set(key, value),
      removeItem: (key) => held.delete(key),
    };
    return { lasting: false, storage };
  }
}
const local = openStorage("localStorage"), session = openStorage("sessionStorage");

const state = {
  language: local.storage.getItem(LANGUAGE_KEY)
    || ((navigator.language || "").toLowerCase().startsWith("en") ? EN : ZH),
  shown: null,       // {at, fact, deadline_ms, reply, client}; `example` or `kept` is true where it is one
  failure: null,     // {code, message, requestId, retryAfter}
  status: null,      // [key, values]
  feedback: null,    // {key, code, message}
  version: {},
  canStream: true,
  takesFeedback: null,
  running: null,     // the AbortController of the request under way
  example: new AbortController(),  // aborted once anything else is to be shown
  tried: new Map(),  // deadline in ms -> thinking tokens the model was told
};

/* ---- words and figures ---- */
// An empty text stands for what the server says in that language itself.
const has = (key) => Object.hasOwn(TEXTS, key);
const t = (key, values = {}) =>
  TEXTS[key][LANGUAGES.indexOf(state.language)].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
const locale = () => (state.language === ZH ? "zh-CN" : "en-GB");
const number = (value) => Number(value).toLocaleString(locale());
const share = (value) => `${Math.round(value * 100)}%`;
// No estimate is certain: 99.7% is not shown as 100%.
const odds = (value) => (value >= 0.995 ? "> 99%" : value < 0.005 ? "< 1%" : share(value));
// The classifier proposes in tenths: ten of them stand for anything from 95% on.
const tenths = (value) => (value >= 1 ? "≥ 95%" : share(value));
const ms = (value) => t("ms", { ms: value < 10 ? Number(value).toFixed(1) : Math.round(value) });
const when = (at) => new Date(at).toLocaleString(locale(), { dateStyle: "short", timeStyle: "short" });
const chosenMs = () => DEADLINES_MS[Number($("deadline").value)];
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

function length(months) {
  const count = (unit, count) => t(count === 1 ? unit : `${unit}s`, { count });
  const years = Math.floor(months / 12), rest = months % 12;
  return ((years ? count("year", years) : "") + (rest || !years ? count("month", rest) : "")).trim();
}
function termText(term) {
  const text = has(`term_${term.kind}`) ? t(`term_${term.kind}`, { length: length(term.months) }) : term.text;
  return term.probation_months ? t("term_probation", { term: text, length: length(term.probation_months) }) : text;
}
function articleText(article) {
  const title = state.language === ZH ? article.title : "art. " + article.id.replace(/之([一二三四五六七八九])/,
    (_, digit) => "-" + ("一二三四五六七八九".indexOf(digit) + 1));
  return t("article", { title });
}

/* ---- asking ---- */
function headers() {
  const key = session.storage.getItem(API_KEY);
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}
class Refusal extends Error {
  constructor(code, message = "", requestId = "", retryAfter = null) {
    super(code);
    Object.assign(this, { code, told: message, requestId, retryAfter });
  }
  static of(body, requestId = "", retryAfter = null) {
    const { code, message } = body.error;
    return new Refusal(code, message, body.request_id || requestId, body.retry_after_s ?? retryAfter);
  }
}
/* Awaits what only the network can break; a cancelled request stays what it is. */
async function orRefuse(promise, ...refusal) {
  try {
    return await promise;
  } catch (problem) {
    throw problem.name === "AbortError" ? problem : new Refusal(...refusal);
  }
}
const post = (path, body, signal) => orRefuse(
  fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(body), signal }), "unreachable");

const idOf = (response) => response.headers.get("X-Request-ID") || "";
async function readJson(response) {
  const requestId = idOf(response);
  const body = await orRefuse(response.json(), "unreadable", String(response.status), requestId);
  if (response.ok) return body;
  if (!body.error) throw new Refusal("unreadable", String(response.status), requestId);
  throw Refusal.of(body, requestId, response.headers.get("Retry-After"));
}

/* Server-sent events of a reply, as [name, data] pairs. */
async function* readEvents(response) {
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await orRefuse(reader.read(), "cut_off", "", idOf(response));
      text = (text + decoder.decode(value, { stream: !done })).replace(/\r\n/g, "\n");
      for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
        let name = "message";
        const data = [];
        for (const line of text.slice(0, end).split("\n")) {
          if (line.startsWith("event:")) name = line.slice(6).trim();
          else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
        }
        if (data.length) yield [name, JSON.parse(data.join("\n"))];
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});  // it may be done or aborted already
  }
}

/* The reply to a request; `onReasoning(text, attempt)` hears the reasoning as it comes. */
async function ask(body, signal, onReasoning) {
  if (state.canStream) {
    const response = await post("/predict/stream", body, signal);
    if (response.status !== 404 && response.status !== 405) {
      if (!(response.headers.get("Content-Type") || "").startsWith("text/event-stream")) {
        return readJson(response);
      }
      for await (const [name, data] of readEvents(response)) {
        if (name === "reasoning") onReasoning(data.text, data.attempt ?? 1);
        else if (name === "verdict") return data;
        else if (name === "error") throw Refusal.of(data, idOf(response));
      }
      throw new Refusal("cut_off", "", idOf(response));
    }
    state.canStream = false;
  }
  return readJson(await post("/predict", body, signal));
}

/* An example with the server's answer, until the visitor asks for something. */
async function showExample() {
  const fact = EXAMPLES[0], { signal } = state.example, startedMs = performance.now();
  say("status_example_waiting");
  try {
    const reply = await readJson(await post("/predict", { fact, deadline_ms: DEFAULT_MS }, signal));
    const client = { round_ms: performance.now() - startedMs };
    if (signal.aborted) return;
    state.shown = { at: new Date().toISOString(), fact, deadline_ms: DEFAULT_MS, reply, client, example: true };
    learn(DEFAULT_MS, reply);
    state.status = ["status_example"];
  } catch (problem) {
    if (signal.aborted) return;
    if (!(problem instanceof Refusal)) throw problem;
    state.status = ["status_example_failed", { reason: () => explain(problem) }];
  }
  render();
}

async function predict() {
  if (state.running) return;
  state.example.abort();
  const fact = $("fact").value, deadlineMs = chosenMs();
  if (!fact.trim()) {
    fail(new Refusal("empty_fact"));
    $("fact").focus();
    return;
  }
  const running = new AbortController();
  state.running = running;
  Object.assign(state, { shown: null, failure: null, feedback: null, status: ["status_waiting"] });
  render();
  $("reasoning").textContent = "";
  if (window.matchMedia("(max-width: 68rem)").matches) $("status").scrollIntoView();
  const startedMs = performance.now();
  let attempt = null;
  try {
    const streamed = state.canStream, body = { fact, deadline_ms: deadlineMs };
    const hear = (text, tried) => {
      if (tried !== attempt) {  // a worker died: another starts anew
        $("reasoning").textContent = "";
        $("reasoning-card").hidden = false;
        say("status_thinking");
      }
      attempt = tried;
      $("reasoning").append(text);
    };
    const told = $("each").checked
      ? await readJson(await post("/predict", { ...body, defendants: "each" }, running.signal))
      : await ask(body, running.signal, hear);
    const { results } = told, reply = results ? results.find((one) => one.reply).reply : told;
    const client = { round_ms: performance.now() - startedMs };
    // The request that found no stream was sent twice: its round trip tells nothing of the network.
    if (streamed !== state.canStream) client.round_ms = null;
    state.shown = { at: new Date().toISOString(), fact, deadline_ms: deadlineMs, reply, results, client };
    learn(deadlineMs, reply);
    keep(state.shown);
    const total = client.round_ms ?? reply.timings_ms.total;
    state.status = [reply.degraded ? "status_degraded" : "status_done", { ms: () => ms(total) }];
    probeFeedback();
  } catch (problem) {
    if (problem.name === "AbortError") state.status = ["status_cancelled"];
    else if (problem instanceof Refusal) fail(problem);
    else {
      console.error(problem);
      fail(new Refusal("page", problem.message));
    }
  } finally {
    state.running = null;
    render();
  }
}

function fail(refusal) {
  state.failure = refusal;
  state.shown = null;
  state.status = null;
  if (refusal.code === "unauthorized") $("key-box").open = true;
  render();
}

/* A model that never ran tells nothing about what its deadline would have bought. */
function learn(deadlineMs, reply) {
  if (reply.source === "fallback" || reply.degraded || reply.cached) return;
  state.tried.set(deadlineMs, reply.thinking.stated_budget);
}

/* ---- feedback ---- */
async function probeFeedback() {
  if (state.takesFeedback !== null) return;
  try {  // a route that takes only POST answers 405; one that is not there, 404
    const response = await fetch("/feedback", { method: "HEAD", headers: headers() });
    if (response.status !== 401) state.takesFeedback = response.ok || response.status === 405;
  } catch {
    return;  // unknown still: asked again after the next verdict
  }
  renderFeedback();
}
async function sendFeedback(body) {
  for (const button of document.querySelectorAll("#feedback button")) button.disabled = true;
  const shown = state.shown;
  let outcome;
  try {
    const response = await post("/feedback", { request_id: shown.reply.request_id, ...body });
    await readJson(response);
    outcome = { sent: true };
  } catch (problem) {
    if (!(problem instanceof Refusal)) throw problem;
    outcome = problem;
    if (problem.code === "not_found") state.takesFeedback = false;
  }
  if (state.shown === shown) state.feedback = outcome;
  renderFeedback();
}
/* The verdict as the fields of the form hold it, each as text. */
const FIELDS = {
  charges: (it) => it.charges?.map((charge) => charge.name).join("；"),
  articles: (it) => it.articles?.map((article) => article.id).join("；"),
  kind: (it) => it.term?.kind,
  months: (it) => it.term?.months,
  probation: (it) => it.term?.probation_months,
  fine: (it) => it.fine_yuan,
};
function offerCorrection(it) {
  for (const [name, read] of Object.entries(FIELDS)) $(`its-${name}`).value = read(it) ?? "";
}
/* The parts that were changed, in the reply's own shape. */
function readCorrection(it) {
  const given = (name) => $(`its-${name}`).value.trim();
  const changed = (...names) => names.some((name) => given(name) && given(name) !== String(FIELDS[name](it) ?? ""));
  const list = (name) => given(name).split(/[；;]/).map((each) => each.trim()).filter(Boolean);
  const counted = KINDS[given("kind")] > 0;
  return {
    ...(changed("charges") && { charges: list("charges").map((name) => ({ name })) }),
    ...(changed("articles") && { articles: list("articles").map((id) => ({ id })) }),
    ...(changed("kind", "months", "probation") && {
      term: {
        kind: given("kind"), months: counted ? Number(given("months")) : 0,
        probation_months: Number(given("probation")),
      },
    }),
    ...(changed("fine") && { fine_yuan: Number(given("fine")) }),
  };
}

/* ---- history: in this browser only, and only when asked for ---- */
const keeps = () => local.storage.getItem(KEEP_KEY) === "1";
function readPast() {
  try {
    const past = JSON.parse(local.storage.getItem(PAST_KEY) || "[]");
    return Array.isArray(past) ? past : [];
  } catch {
    return [];  // not written by this page
  }
}
function writePast(past) {
  $("past-text").textContent = "";
  for (let kept = past.slice(0, MAX_KEPT); kept.length; kept = kept.slice(0, -1)) {
    try {
      local.storage.setItem(PAST_KEY, JSON.stringify(kept));
      return;
    } catch {
      $("past-text").textContent = t("keep_full");
    }
  }
  local.storage.removeItem(PAST_KEY);
}
function keep(entry) {
  if (keeps()) writePast([entry, ...readPast()]);
}
function clearPast() {
  if (readPast().length && !window.confirm(t("clear_confirm"))) return false;
  local.storage.removeItem(PAST_KEY);
  renderPast();
  return true;
}
function save(name, content) {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/* ---- showing ---- */
function say(key, values) {
  state.status = [key, values];
  renderStatus();
}
function renderStatus() {
  const [key, values = {}] = state.status || [];
  const read = Object.entries(values).map(([name, value]) => [name, typeof value === "function" ? value() : value]);
  const text = key ? t(key, Object.fromEntries(read)) : "";
  if ($("status").textContent !== text) $("status").textContent = text;
}
function render() {
  const running = Boolean(state.running);
  $("go").disabled = running;
  $("cancel").hidden = !running;
  document.body.classList.toggle("running", running);
  renderStatus();
  renderFailure();
  renderReply();
  renderBudgets();
  renderFeedback();
  renderPast();
}
function renderFailure() {
  const failure = state.failure;
  $("error").hidden = !failure;
  if (!failure) return;
  $("error-text").textContent = explain(failure);
  $("error-id").textContent = failure.requestId ? t("request_id", { id: failure.requestId }) : "";
}
/* What a refusal means and when to try again. */
function explain(failure) {
  const key = has(`error_${failure.code}`) ? `error_${failure.code}` : "error_other";
  const message = String(failure.told).replace(/[。.]$/, "");
  const sentence = t(key, { message, code: failure.code });
  return failure.retryAfter ? t("retry", { sentence, seconds: failure.retryAfter }) : sentence;
}
function renderReply() {
  const shown = state.shown;
  for (const id of ["verdict-card", "time"]) $(id).hidden = !shown;
  $("proposed-card").hidden = !shown?.reply.proposed;
  $("example-mark").hidden = !shown?.example;
  $("print-fact").classList.toggle("example", Boolean(shown?.example));
  const reasoned = shown ? shown.reply.reasoning || shown.reply.thinking.allowed : state.running && $("reasoning").textContent;
  $("reasoning-card").hidden = !reasoned;
  for (const id of ["thinking-text", "thinking-bar"]) $(id).hidden = !shown;
  if (!shown) return;
  const { reply } = shown, source = reply.source || "model";
  $("source").textContent = has(`source_${source}`) ? t(`source_${source}`) : source;
  $("source").classList.toggle("late", source !== "model");
  renderDegraded(reply, source);
  $("verdict").replaceChildren(...shown.results ? shown.results.map((one) => showResult(one, shown))
    : reply.defendants.map((defendant) => showDefendant(defendant, reply)));
  renderProposed(reply, source);
  renderConfidence(reply);
  $("warnings-box").hidden = reply.warnings.length === 0;
  $("warnings").replaceChildren(...reply.warnings.map((warning) =>
    make("li", (has(`warning_${warning.code}`) && t(`warning_${warning.code}`)) || warning.message)));
  if (reply.left_out) $("warnings").append(make("li", t("left_out", {
    characters: number(reply.left_out.characters), sentences: number(reply.left_out.sentences),
  })));
  $("notice").textContent = reply.notice;
  $("notice-translated").textContent = t("notice");
  $("identity").textContent = t("identity", {
    name: reply.model.name, precision: reply.model.precision, manifest: reply.model.manifest,
    statutes: reply.statute_version, id: reply.request_id,
  }) + (reply.law?.day ? t("law", reply.law) : "");
  $("print-fact-text").textContent = shown.fact;
  renderThinking(reply);
  renderTimes(shown);
}
function renderDegraded(reply, source) {
  $("degraded").hidden = !reply.degraded;
  if (!reply.degraded) return;
  const reason = reply.degraded_reason;
  const why = has(`degraded_${reason}`) ? t(`degraded_${reason}`) : t("degraded_other", { reason });
  const then = reply.defendants.length === 0 ? "degraded_nothing" : source === "fallback" ? "degraded_fallback" : null;
  $("degraded").textContent = [why, then && t(then)].filter(Boolean).join(state.language === ZH ? "" : " ");
}

function intervalText({ low, high, coverage, basis }) {
  const alike = low.kind === high.kind, name = alike && low.months ? (end) => length(end.months) : termText;
  let text = t(alike && low.months === high.months ? "interval_same" : "interval", { low: name(low), high: name(high) });
  if (basis === "classifier") text = t("interval_basis", { text });
  return isNumber(coverage) ? t("interval_coverage", { text, share: share(coverage) }) : text;
}
/* One of several: choosing him shows the warnings, reasoning and times of his verdict below. */
function showResult({ defendant, fact, reply, error }, shown) {
  const box = make("div", null, "card"), head = make("h3");
  const name = make("button", defendant ? t("defendant", { name: defendant }) : t("verdict"));
  name.type = "button";
  name.disabled = !reply;
  name.setAttribute("aria-pressed", String(reply === shown.reply));
  name.addEventListener("click", () => {
    Object.assign(state, { feedback: null, shown: { ...shown, reply } });
    render();
  });
  head.append(name);
  box.append(head);
  if (error) box.append(make("p", explain(new Refusal(error.code, error.message, "", error.retry_after_s)), "banner"));
  if (reply?.degraded) head.append(make("span", t("source_fallback"), "tag late"));
  box.append(...reply?.defendants.map((each) => showDefendant(each, reply)) ?? []);
  if (fact) {
    const asked = make("details"), text = make("p", fact, "soft");
    text.lang = "zh-CN";
    asked.append(make("summary", t("asked")), text);
    box.append(asked);
  }
  return box;
}
function showDefendant(defendant, reply) {
  const box = make("div"), list = make("dl");
  const line = (key, value, notes = []) => {
    const cell = make("dd", value);
    for (const [text, className] of notes) cell.append(make("small", text, className));
    list.append(make("dt", t(key)), cell);
    return cell;
  };
  const confidence = defendant.confidence || reply.confidence || {}, likely = confidence.charges || [];
  if (defendant.charges) {
    const cell = line("charges", "");
    defendant.charges.forEach((charge, at) => {
      const name = make("span", charge.title);
      name.lang = "zh-CN";
      cell.append(at ? t("separator") : "", name);
      const probability = charge.probability ?? likely.find((each) => each.name === charge.name)?.probability;
      if (isNumber(probability)) cell.append(make("small", t("probability", { share: odds(probability) })));
    });
    const others = likely.filter((each) => each.probability >= 0.01 && !defendant.charges.some((charge) => charge.name === each.name))
      .map((each) => `${each.title} ${odds(each.probability)}`);
    if (others.length) cell.append(make("small", t("other_charges", { charges: others.join(t("separator")) })));
  }
  if (defendant.articles) line("articles", defendant.articles.map(articleText).join(t("separator")));
  const { term } = defendant;
  const interval = confidence.term_interval ? [[intervalText(confidence.term_interval)]] : [];
  if (!term && interval.length) line("term", "", interval);
  if (term) {
    const notes = [...interval], { in_range: inRange, tier } = term.statutory || {};
    if (tier) notes.push([t("tier", { tier })]);
    else if (inRange === false) notes.push([t("tier_outside"), "off"]);
    line("term", termText(term), notes).classList.add("sentence");
  }
  if (isNumber(defendant.fine_yuan)) {
    line("fine", defendant.fine_yuan ? t("fine_yuan", { yuan: number(defendant.fine_yuan) }) : t("none"));
  }
  box.append(list);
  if (defendant.ruling) {
    const ruling = make("blockquote", defendant.ruling);
    ruling.lang = "zh-CN";
    box.append(ruling);
  }
  return box;
}
/* Each part of the classifier's proposal beside the model's own; a stand-in's verdict is not the model's. */
function renderProposed({ proposed, defendants }, source) {
  if (!proposed) return;
  const made = source === "model" ? defendants[0] : undefined;
  const { charges, articles, term, harm, circumstances } = proposed;
  const sameSet = (ones, others) => ones.length === others.length && ones.every((one) => others.includes(one));
  const list = (texts) => texts.join(t("separator")) || t("none");
  const row = (key, offered, answer, same) => {
    const line = make("tr"), head = make("th", t(key)), cell = make("td");
    head.scope = "row";
    if (answer === null) cell.append(t(source === "overruled" ? "proposed_overruled" : "proposed_unanswered"));
    else cell.append(make("div", answer), make("span", t(same ? "proposed_same" : "proposed_differs"), `tag ${same ? "same" : "late"}`));
    line.append(head, make("td", offered), cell);
    return line;
  };
  const found = (key, text) => {
    const line = make("tr"), head = make("th", t(key)), cell = make("td", text);
    head.scope = "row";
    cell.colSpan = 2;
    line.append(head, cell);
    return line;
  };
  const parts = [], ownCharges = made?.charges?.map((charge) => charge.name);
  parts.push(row("charges", list(charges.map((charge) => `${charge.title} ${tenths(charge.probability)}`)),
    made?.charges ? list(made.charges.map((charge) => charge.title)) : null,
    // As many as the model names, of the likeliest.
    ownCharges && sameSet(ownCharges, charges.slice(0, ownCharges.length).map((charge) => charge.name))));
  parts.push(row("articles", list(articles.map(articleText)), made?.articles ? list(made.articles.map(articleText)) : null,
    made?.articles && sameSet(made.articles.map((each) => each.id), articles.map((each) => each.id))));
  parts.push(row("term", rangeText(term), made?.term ? termText(made.term) : null, made?.term && holds(term, made.term)));
  if (harm) parts.push(found("proposed_harm", harm));
  parts.push(found("proposed_circumstances", list(circumstances)));
  $("proposed").replaceChildren(...parts);
}
function rangeText({ text, low_months: low, high_months: high }) {
  if (low === null || high === null) return text;
  return low === high ? length(low) : t("interval", { low: length(low), high: length(high) });
}
function holds({ text, low_months: low, high_months: high }, term) {
  if (!KINDS[term.kind] || (low ?? high) === null) {
    const [mine, first, last = first] = [term.kind_name, ...text.split("至")].map((name) =>
      ({免予刑事处罚: 0, 无期徒刑: 2, 死刑缓期二年执行: 3, 死刑: 4})[name] ?? 1);
    return first <= mine && mine <= last;
  }
  return (low ?? 0) <= term.months && term.months <= (high ?? Infinity);
}
function renderConfidence(reply) {
  const parts = Object.entries(reply.confidence?.probabilities || reply.confidences || {}).filter(([, sure]) => isNumber(sure)).map(([part, sure]) =>
    `${has(`part_${part}`) ? t(`part_${part}`) : part} ${odds(sure)}`);
  $("confidence").hidden = parts.length === 0;
  $("confidence").textContent = parts.length ? t("confidence", { parts: parts.join(t("separator")) }) : "";
}
function fill(bar, parts) {
  bar.replaceChildren(...parts.map(([portion, colour]) => {
    const part = make("span");
    part.style.width = `${Math.min(100, Math.max(0, portion * 100))}%`;
    part.style.background = `var(--${colour})`;
    return part;
  }));
}
function renderThinking({ thinking, reasoning, source }) {
  const text = t("thinking", { tokens: thinking.tokens, allowed: thinking.allowed, stated: thinking.stated_budget });
  $("thinking-text").textContent = thinking.cut ? t("thinking_cut", { text }) : text;
  fill($("thinking-bar"), [[thinking.allowed ? thinking.tokens / thinking.allowed : 0, "thinking"]]);
  const said = reasoning || t(source === "overruled" ? "overruled_reasoning" : "no_reasoning");
  if ($("reasoning").textContent !== said) $("reasoning").textContent = said;
}

/* Milliseconds by where they went: the server's own figures, the rest of its total, the network. */
function timeParts({ reply, client }) {
  const times = reply.timings_ms, { thinking, answer } = times;
  const parts = [["queue", times.queue], ["prefill", times.prefill]];
  if (isNumber(thinking) && isNumber(answer)) parts.push(["thinking", thinking], ["answer", answer]);
  else parts.push(["decode", times.decode]);
  const told = parts.reduce((sum, [, spent]) => sum + spent, 0);
  parts.push(["rest", Math.max(0, times.total - told)]);
  if (isNumber(client?.round_ms)) parts.push(["network", Math.max(0, client.round_ms - times.total)]);
  return parts;
}
function renderTimes(shown) {
  const { reply, client } = shown, parts = timeParts(shown);
  const total = reply.timings_ms.total, deadline = reply.deadline_ms;
  const span = Math.max(deadline, parts.reduce((sum, [, spent]) => sum + spent, 0));
  const colour = (part) => (part === "decode" ? "thinking" : part);
  fill($("time-bar"), parts.map(([part, spent]) => [spent / span, colour(part)]));
  $("time-limit").style.left = `calc(${(deadline / span) * 100}% - 2px)`;
  $("time-limit").classList.toggle("early", deadline / span < 0.4);
  $("time-limit-text").textContent = t("time_limit", { ms: ms(deadline) });
  $("time-key").replaceChildren(...parts.map(([part, spent]) => {
    const item = make("li"), mark = make("i");
    mark.style.background = `var(--${colour(part)})`;
    item.append(mark, `${t(`time_${part}`)} ${ms(spent)}`);
    return item;
  }));
  const met = total <= deadline;
  $("time-text").textContent = t(met ? "time_met" : "time_late", { total: ms(total), deadline: ms(deadline) });
  // A degraded answer counts as a miss, however soon it came.
  $("time-text").className = !met ? "late" : reply.degraded ? "" : "met";
  $("time-note").textContent = isNumber(client?.round_ms) ? t("time_note", { round: ms(client.round_ms) }) : "";
}

/* What the server measured on test cases; nothing where it tells nothing. */
function measured() {
  const rows = Array.isArray(state.version.by_budget) ? state.version.by_budget : [];
  return rows.filter((row) => isNumber(row.budget) && isNumber(row.exact)).sort((a, b) => a.budget - b.budget);
}
function renderBudgets() {
  const rows = measured(), deadline = chosenMs(), stated = state.tried.get(deadline);
  const reached = rows.filter((row) => row.budget <= stated).pop();
  $("deadline-text").textContent = ms(deadline);
  $("deadline").setAttribute("aria-valuetext", ms(deadline));
  for (const mark of $("marks").children) {
    const at = Number(mark.dataset.ms);
    mark.firstChild.textContent = at;
    mark.setAttribute("aria-label", ms(at));
    mark.setAttribute("aria-pressed", String(at === deadline));
    const told = rows.filter((row) => row.budget <= state.tried.get(at)).pop();
    mark.lastChild.textContent = told ? share(told.exact) : "";
    if (told) mark.setAttribute("aria-label", `${ms(at)}, ${share(told.exact)}`);
  }
  $("budget-box").hidden = rows.length === 0;
  if (rows.length === 0) return;
  $("budgets").replaceChildren(...rows.map((row) => {
    const item = make("li", share(row.exact), row === reached ? "now" : ""), bar = make("i");
    bar.style.height = `${(row.exact * 3.5).toFixed(2)}rem`;
    item.append(bar, make("b", row.budget));
    if (row === reached) item.setAttribute("aria-current", "true");
    return item;
  }));
  const cases = new Set(rows.map((row) => row.n));
  const n = cases.size === 1 ? [...cases][0] : undefined;
  const end = state.language === ZH ? "。" : ". ";
  $("budget-text").textContent =
    t("budget_figure") + (isNumber(n) ? t("budget_cases", { n }) : "") + end + budgetNow(deadline, stated, reached);
}
function budgetNow(deadline, stated, reached) {
  if (reached) return t("budget_at", { deadline, stated, budget: reached.budget, exact: share(reached.exact) });
  return t("budget_unknown", { deadline });
}
function renderFeedback() {
  const { shown, feedback } = state;
  const usable = shown && !shown.kept && !shown.example && shown.reply.defendants.length > 0;
  $("feedback").hidden = !usable || state.takesFeedback !== true;
  const sent = Boolean(feedback && feedback.sent);
  for (const button of document.querySelectorAll("#feedback button")) button.disabled = sent;
  if (!feedback || sent) {
    $("correct").hidden = true;
    $("wrong").setAttribute("aria-expanded", "false");
  }
  $("feedback-text").textContent = !feedback ? "" : sent ? t("feedback_sent")
    : t("feedback_failed", { reason: has(`error_${feedback.code}`) ? t(`error_${feedback.code}`, { message: feedback.told }) : feedback.told || feedback.code });
}
function renderPast() {
  const past = readPast();
  $("keep").checked = keeps();
  $("past-actions").hidden = past.length === 0;
  $("past-list").replaceChildren(...past.map((entry, index) => {
    const item = make("li"), open = make("button"), remove = make("button", "×");
    const [first] = entry.reply.defendants;
    const parts = first ? [first.charges?.map((c) => c.title).join("、"), first.term && termText(first.term)] : [t("past_nothing")];
    open.textContent = t("past_item", { time: when(entry.at), verdict: parts.filter(Boolean).join(" · ") });
    remove.setAttribute("aria-label", t("past_remove", { time: when(entry.at) }));
    open.type = remove.type = "button";
    open.addEventListener("click", () => openPast(entry));
    remove.addEventListener("click", () => {
      writePast(readPast().filter((_, at) => at !== index));
      renderPast();
      ($("past-list").querySelector("button") || $("keep")).focus();
    });
    item.append(open, remove);
    return item;
  }));
}
function openPast(entry) {
  if (state.running) return;
  state.example.abort();
  Object.assign(state, { shown: { ...entry, kept: true }, failure: null, feedback: null });
  state.status = ["status_shown", { time: () => when(entry.at) }];
  $("fact").value = entry.fact;
  setDeadline(entry.deadline_ms);
  render();
  $("status").scrollIntoView({ block: "nearest" });
}
function setDeadline(wanted) {
  const nearest = DEADLINES_MS.reduce((best, each) => (Math.abs(each - wanted) < Math.abs(best - wanted) ? each : best));
  $("deadline").value = DEADLINES_MS.indexOf(nearest);
  renderBudgets();
}
function speak(language) {
  state.language = language;
  document.documentElement.lang = language === ZH ? "zh-CN" : "en";
  document.title = t("title");
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = t(element.dataset.text);
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", t(element.dataset.label));
  for (const element of document.querySelectorAll("[data-placeholder]")) element.placeholder = t(element.dataset.placeholder);
  for (const option of $("its-kind").options) option.textContent = t(`term_${option.value}`).replace(/, $/, "");
  $("language").textContent = t("other_language");
  $("language").lang = language === ZH ? "en" : "zh-CN";
  $("past-text").textContent = local.lasting ? "" : t("keep_blocked");
  render();
}
async function loadVersion() {
  try {
    const response = await fetch("/version", { headers: headers() });
    state.version = response.ok ? await response.json() : {};
  } catch {
    state.version = {};  // no figures then; a request will say what is wrong
  }
  renderBudgets();
}

/* ---- wiring ---- */
EXAMPLES.forEach((fact, index) => {
  const button = make("button");
  button.type = "button";
  button.dataset.text = `example_${index}`;
  button.addEventListener("click", () => {
    $("fact").value = fact;
    $("fact").focus();
  });
  $("examples").append(button);
});
for (const kind of Object.keys(KINDS)) {
  $("its-kind").append(make("option"));
  $("its-kind").lastChild.value = kind;
}
$("deadline").max = DEADLINES_MS.length - 1;
for (const at of MARKS_MS) {
  const mark = make("button");
  mark.type = "button";
  mark.dataset.ms = at;
  mark.style.left = `${(DEADLINES_MS.indexOf(at) / (DEADLINES_MS.length - 1)) * 100}%`;
  mark.append(make("span"), make("small"));
  mark.addEventListener("click", () => setDeadline(at));
  $("marks").append(mark);
}
$("deadline").addEventListener("input", renderBudgets);
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  predict();
});
$("fact").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  predict();
});
const cancel = () => state.running?.abort();
$("cancel").addEventListener("click", () => {
  cancel();
  $("fact").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") cancel();
});
$("language").addEventListener("click", () => {
  const language = state.language === ZH ? EN : ZH;
  local.storage.setItem(LANGUAGE_KEY, language);
  speak(language);
});
$("key").value = session.storage.getItem(API_KEY) || "";
$("key").addEventListener("input", () => {
  const key = $("key").value.trim();
  if (key) session.storage.setItem(API_KEY, key);
  else session.storage.removeItem(API_KEY);
});
$("key").addEventListener("change", loadVersion);
$("print").addEventListener("click", () => window.print());
$("export").addEventListener("click", () => save(`curt-${state.shown.reply.request_id}.json`, state.shown));
$("right").addEventListener("click", () => sendFeedback({ verdict: "correct" }));
$("wrong").addEventListener("click", () => {
  $("correct").hidden = !$("correct").hidden;
  $("wrong").setAttribute("aria-expanded", String(!$("correct").hidden));
  if ($("correct").hidden) return;
  offerCorrection(state.shown.reply.defendants[0]);
  $("its-charges").focus();
});
$("correct").addEventListener("submit", (event) => {
  event.preventDefault();
  const correction = readCorrection(state.shown.reply.defendants[0]);
  sendFeedback({ verdict: "wrong", ...(Object.keys(correction).length ? { correction } : {}) });
});
$("keep").addEventListener("change", () => {
  if ($("keep").checked) {
    local.storage.setItem(KEEP_KEY, "1");
    if (state.shown && !state.shown.kept && !state.shown.example) keep(state.shown);
  } else if (clearPast()) {
    local.storage.removeItem(KEEP_KEY);
  }
  renderPast();
});
$("past-clear").addEventListener("click", clearPast);
$("past-export").addEventListener("click", () => save("curt-history.json", readPast()));
setDeadline(DEFAULT_MS);
speak(LANGUAGES.includes(state.language) ? state.language : ZH);
loadVersion();
showExample();
