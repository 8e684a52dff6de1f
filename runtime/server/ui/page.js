// The page at /ui: a stream of snapshots, shown. Texts of others become text nodes, never markup.

const KEY = "kvfold key";
const MAX_POINTS = 720;
const MAX_ENDED = 256;
const SESSIONS_MS = 3000;
const RETRY_MS = 2000;

// Elements

const byId = (id) => document.getElementById(id);

function build(make, tag, attributes, children) {
  const element = make(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const el = (tag, attributes = {}, ...children) =>
  build((name) => document.createElement(name), tag, attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  build((name) => document.createElementNS("http://www.w3.org/2000/svg", name), tag, attributes, children);

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// `value` is the number behind the text; `level` colours it.
function stat(name, text, value = null, level = null) {
  for (const element of document.querySelectorAll(`[data-stat="${name}"]`)) {
    setText(element, text);
    if (value !== null) element.dataset.value = value;
    if (level) element.dataset.level = level;
    else delete element.dataset.level;
  }
}

// Rows that stay the same elements while their keys are there, so that focus stays too.
function showRows(body, items, keyOf, make, update) {
  const old = new Map([...body.children].map((row) => [row.dataset.key, row]));
  let at = body.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let row = old.get(key);
    if (row) old.delete(key);
    else {
      row = make(item);
      row.dataset.key = key;
    }
    update(row, item);
    if (row === at) at = at.nextElementSibling;
    else body.insertBefore(row, at);
  }
  for (const row of old.values()) row.remove();
}

function cells(row, texts) {
  texts.forEach((text, at) => setText(row.children[at], text));
}

function setWidths(bar, parts) {
  const total = parts.reduce((sum, [, size]) => sum + size, 0);
  while (bar.children.length < parts.length) bar.append(el("i"));
  parts.forEach(([kind, size], at) => {
    bar.children[at].className = kind;
    bar.children[at].style.width = total ? `${(100 * size) / total}%` : "0";
  });
}

// Numbers

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const count = (value) => whole.format(value);
const number = (value) => (value >= 1000 ? whole.format(value) : short.format(value));
const share = (part, all) => (all ? `${((100 * part) / all).toFixed(1)} %` : "-");
const plural = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

function seconds(value) {
  if (value === null || value === undefined) return "-";
  if (value < 0.9995) return `${number(value * 1000)} ms`;
  if (value < 90) return `${number(value)} s`;
  if (value < 5400) return `${count(value / 60)} min`;
  return value < 172800 ? `${number(value / 3600)} h` : `${number(value / 86400)} d`;
}

function bytes(value) {
  if (value === null || value === undefined) return "-";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${short.format(value)} ${units[unit]}`;
}

// The server

let key = sessionStorage.getItem(KEY) ?? "";

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.ok) return answer;
  let message = `status ${answer.status}`;
  try {
    message = (await answer.json()).error.message;
  } catch {
    // a proxy's own answer
  }
  if (answer.status === 401) askForKey();
  throw new Refused(answer.status, message);
}

// Data of server-sent events.
async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        for (const line of block.split("\n")) if (line.startsWith("data: ")) yield line.slice(6);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function complain(text) {
  const message = byId("message");
  message.hidden = !text;
  setText(message, text);
}

function askForKey() {
  const dialog = byId("key-dialog");
  if (!dialog.open) dialog.showModal();
}

// What was seen

const seen = { now: null, points: [], ended: [], tree: null };
let watching = null;

async function watch() {
  if (watching || document.hidden) return;
  watching = new AbortController();
  const mine = watching;
  try {
    const answer = await ask("v1/kvfold/events", { signal: mine.signal });
    Object.assign(seen, { points: [], ended: [], tree: null });
    complain("");
    for await (const data of eventsOf(answer)) take(JSON.parse(data));
    setState("connecting", "connecting");
  } catch (error) {
    if (mine.signal.aborted) return;
    setState("lost", error instanceof Refused ? `refused: ${error.status}` : "no connection");
    complain(error instanceof Refused ? error.message : "The server does not answer. Trying again.");
  } finally {
    if (watching === mine) {
      watching = null;
      if (!byId("key-dialog").open) setTimeout(watch, RETRY_MS);
    }
  }
}

function stopWatching() {
  watching?.abort();
  watching = null;
}

function take(snapshot) {
  seen.now = snapshot;
  if (snapshot.history) {
    const fields = snapshot.history.fields;
    const news = snapshot.history.points.map((point) =>
      Object.fromEntries(fields.map((field, at) => [field, point[at]])),
    );
    seen.points = [...seen.points, ...news].slice(-MAX_POINTS);
  }
  seen.ended = [...snapshot.ended.reverse(), ...seen.ended].slice(0, MAX_ENDED);
  // The loop tells how requests stand a moment later than that they ended.
  const over = new Set(seen.ended.map((reply) => reply.id));
  snapshot.requests = snapshot.requests.filter((request) => !over.has(request.id));
  if (snapshot.tree) seen.tree = readTree(snapshot.tree);
  document.body.dataset.whole = snapshot.server.sees_whole_server ? "yes" : "no";
  const tenants = [...snapshot.requests, ...seen.ended, ...(seen.tree?.boxes ?? [])].some((each) => each.tenant);
  document.body.dataset.tenants = snapshot.server.sees_all_tenants && tenants ? "all" : "one";
  showHealth(snapshot);
  if (snapshot.speed) showSpeed();
  if (snapshot.cache) {
    showCache(snapshot.cache);
    showTier(snapshot.tier, snapshot.cache.loaded_tokens);
  }
  showRequests(snapshot.requests);
  showReuse();
  if (snapshot.tree) showTree();
  document.body.dataset.snapshots = Number(document.body.dataset.snapshots ?? 0) + 1;
}

// Is it well?

function setState(state, text) {
  const status = byId("status");
  status.dataset.state = state;
  setText(status, text);
  document.title = `${state === "ready" ? "" : "⚠ "}${seen.now ? `${seen.now.server.model} · ` : ""}kvfold`;
}

function showHealth({ server, load, counts }) {
  const [word] = (server.problem ?? "ready").split(":");
  setState(server.problem ? "problem" : "ready", word);
  stat("model", server.model);
  stat("version", `version ${server.version}`);
  stat("uptime", `up ${seconds(server.uptime_seconds)}`, server.uptime_seconds);
  stat("problem", server.problem ?? "ready", null, server.problem ? "bad" : "good");
  const age = server.step_age_seconds;
  const slow = age > 5 ? "bad" : age > 1 ? "warn" : null;
  stat("step-age", load.busy ? `${seconds(age)} ago` : "idle", age, slow);
  stat("running", `${count(load.running)} of ${count(load.max_running)}`, load.running);
  const full = load.max_waiting && load.waiting >= load.max_waiting ? "bad" : null;
  stat("waiting", `${count(load.waiting)} of ${count(load.max_waiting)}`, load.waiting, full);
  stat("waiting-tokens", count(load.waiting_tokens), load.waiting_tokens);
  stat("memory", bytes(server.memory_bytes), server.memory_bytes);
  if (!counts) return;
  const sum = (values) => Object.values(values).reduce((all, value) => all + value, 0);
  stat("refused", count(sum(counts.refusals)), sum(counts.refusals), sum(counts.refusals) ? "warn" : null);
  stat("errors", count(counts.ends.error), counts.ends.error, counts.ends.error ? "bad" : null);
  stat("cancelled", count(counts.ends.cancelled), counts.ends.cancelled);
  stat("replied", count(counts.ends.stop + counts.ends.length), counts.ends.stop + counts.ends.length);
  stat("unread", plural(counts.unread_characters, "character"), counts.unread_characters);
  const list = (values) =>
    Object.entries(values).filter(([, value]) => value).map(([name, value]) => `${name} ${count(value)}`).join(", ");
  const reasons = [["refused", counts.refusals], ["cancelled or failed by", counts.cancelled]]
    .filter(([, values]) => sum(values))
    .map(([what, values]) => `${what}: ${list(values)}`);
  stat("reasons", reasons.join(" · "));
}

// Is it fast?

const CHARTS = [
  {
    name: "time to first token",
    lines: [["p50", (point) => point.first_token_p50], ["p95", (point) => point.first_token_p95]],
    format: seconds,
  },
  {
    name: "between tokens",
    lines: [["p50", (point) => point.between_tokens_p50], ["p95", (point) => point.between_tokens_p95]],
    format: seconds,
  },
  {
    name: "reply tokens a second",
    lines: [["generated", (point) => point.reply_tokens / point.seconds]],
    format: number,
  },
  {
    name: "prompt tokens a second",
    lines: [
      ["computed", (point) => point.computed_tokens / point.seconds],
      ["reused", (point) => point.hit_tokens / point.seconds],
    ],
    format: number,
  },
  {
    name: "reply tokens a step",
    lines: [["batch", (point) => (point.steps ? point.reply_tokens / point.steps : null)]],
    format: number,
  },
  {
    name: "requests",
    lines: [["running", (point) => point.running], ["waiting", (point) => point.waiting]],
    format: count,
  },
];

const minutes = () => Number(document.querySelector("[name=minutes]:checked").value);

function showSpeed() {
  const speed = seen.now?.speed;
  if (!speed) return;
  const of = speed.minutes[minutes()];
  for (const [name, found] of [["first", of.first_token], ["between", of.between_tokens]]) {
    for (const rank of ["p50", "p95", "p99"]) stat(`${name}-${rank}`, seconds(found[rank]), found[rank]);
    stat(`${name}-count`, count(found.values), found.values);
  }
  const young = of.seconds < 59 * minutes();
  const engine = (rate) => (rate ? `${number(rate)} a second while it does` : "not measured yet");
  stat(
    "speed-span",
    `${young ? "Since the start" : "Over the last"} ${seconds(of.seconds)}${young ? " ago" : ""}: ` +
      `${number(of.reply_rate)} reply tokens and ${number(of.prefill_rate)} computed prompt tokens a second` +
      `${of.batch === null ? "" : `, ${number(of.batch)} reply tokens a step`}. ` +
      `The engine computes prompts at ${engine(speed.engine_prefill_rate)}, replies at ` +
      `${engine(speed.engine_decode_rate)}. Percentiles are interpolated within the buckets of /metrics.`,
  );
  const from = seen.now.at - 60 * minutes();
  const points = seen.points.filter((point) => point.at >= from);
  for (const chart of CHARTS) drawChart(chart, points, from, seen.now.at);
}

function drawChart(chart, points, from, to) {
  if (!chart.figure) {
    chart.keys = chart.lines.map(([name], at) => el("span", { class: `key-${at}` }));
    chart.picture = svg("svg", { viewBox: "0 0 300 44", preserveAspectRatio: "none", "aria-hidden": "true" });
    chart.note = el("p");
    const caption = el("figcaption", {}, el("b", {}, chart.name), el("span", {}, ...chart.keys));
    chart.figure = el("figure", { "data-chart": chart.name }, caption, chart.picture, chart.note);
    byId("charts").append(chart.figure);
  }
  const values = chart.lines.map(([, of]) => points.map(of));
  const most = Math.max(0, ...values.flat().filter((value) => value !== null));
  chart.lines.forEach(([name], at) => {
    setText(chart.keys[at], `${name} ${chart.format(values[at].at(-1) ?? null) ?? "-"}`);
  });
  setText(chart.note, points.length ? `at most ${chart.format(most)}` : "no points yet");
  chart.picture.replaceChildren(
    ...values.flatMap((line, at) =>
      runs(line).map((run) => {
        const place = ([index, value]) =>
          `${((300 * (points[index].at - from)) / (to - from)).toFixed(1)},${(43 - (42 * value) / (most || 1)).toFixed(1)}`;
        const path = run.map(place);
        return svg("polyline", { class: `line-${at}`, points: (path.length > 1 ? path : [...path, ...path]).join(" ") });
      }),
    ),
  );
}

// Values without the gaps, as [index, value].
function runs(line) {
  const found = [];
  line.forEach((value, index) => {
    if (value === null) return;
    if (index && line[index - 1] !== null) found.at(-1).push([index, value]);
    else found.push([[index, value]]);
  });
  return found;
}

// Does the cache pay?

function showTier(tier, loaded) {
  if (!tier) return stat("tier", "");
  const { reading, writing, reason } = tier.state;
  const stopped = [!reading && "reads", !writing && "writes"].filter(Boolean).join(" nor ");
  const state = reason ? ` It no longer ${stopped}: ${reason}.` : "";
  const text =
    `The tier holds ${bytes(tier.bytes)} in ${plural(tier.objects, "object")}; ` +
    `${count(loaded)} prompt tokens came from it.${state}`;
  stat("tier", text, tier.bytes, reason ? "bad" : null);
}

function showCache(cache) {
  const { queried_tokens: asked, hit_tokens: hit, too_short_tokens: gone } = cache;
  stat("hit-share", share(hit, asked), asked ? hit / asked : 0);
  stat("saved", seconds(cache.saved_seconds), cache.saved_seconds);
  stat("too-short", share(gone, asked), gone, asked && gone / asked > 0.1 ? "warn" : null);
  stat("evicted", count(cache.evicted_pages), cache.evicted_pages);
  stat("preemptions", count(cache.preemptions), cache.preemptions, cache.preemptions ? "warn" : null);
  stat("resumed", `${count(cache.resumed_turns)} of ${count(cache.resumed_turns + cache.rematched_turns)}`, cache.resumed_turns);
  const computed = asked - hit - gone;
  setWidths(byId("cache-bar"), [["hit", hit], ["gone", gone], ["miss", computed]]);
  stat(
    "cache-bar-text",
    `Of ${count(asked)} prompt tokens ${count(hit)} were reused, ${count(gone)} known but their window gone, ` +
      `${count(computed)} new. ${count(cache.recomputed_tokens)} were computed twice after a preemption; ` +
      `${plural(cache.reclaimed_sessions, "session")} gave up kept pages. ` +
      `${bytes(cache.free_bytes)} of ${bytes(cache.kv_cache_bytes)} are free.`,
  );
  showRows(
    byId("pools"),
    cache.pools,
    (pool) => pool.group,
    () => el("tr", {}, el("th", { scope: "row" }), el("td", {}, el("div", { class: "bar" })), ...Array.from({ length: 3 }, () => el("td"))),
    (row, pool) => {
      row.dataset.group = pool.group;
      setText(row.children[0], pool.group);
      const [used, idle] = [pool.in_use * pool.page_bytes, pool.idle * pool.page_bytes];
      setWidths(row.children[1].firstChild, [["use", used], ["idle", idle], ["free", cache.kv_cache_bytes - used - idle]]);
      [pool.in_use, pool.idle].forEach((pages, at) => setText(row.children[at + 2], count(pages)));
      setText(row.children[4], bytes(used + idle));
    },
  );
}

// Who uses it?

function showRequests(requests) {
  byId("no-requests").hidden = requests.length > 0;
  showRows(
    byId("requests"),
    requests,
    (request) => request.id,
    (request) => {
      const button = el("button", { type: "button", "aria-label": `Cancel request ${request.id}` }, "Cancel");
      button.addEventListener("click", () => cancel(request.id, button));
      return el("tr", {}, el("td", { class: "id" }), el("td", { class: "tenants" }), el("td", { class: "text" }),
        ...Array.from({ length: 4 }, () => el("td")), el("td", {}, button));
    },
    (row, request) => {
      row.dataset.request = request.id;
      row.dataset.state = request.state;
      cells(row, [
        request.id, request.tenant || "-", request.state, count(request.prompt_tokens),
        request.state === "queued" ? "-" : count(request.reused_tokens), count(request.completion_tokens),
        seconds(request.age_seconds),
      ]);
    },
  );
}

async function cancel(id, button) {
  button.disabled = true;
  try {
    await ask(`v1/kvfold/requests/${encodeURIComponent(id)}`, { method: "DELETE" });
    setText(button, "Cancelled");
  } catch (error) {
    if (error instanceof Refused && error.status === 404) return; // it has ended by itself
    button.disabled = false;
    complain(`Request ${id} was not cancelled: ${error.message}`);
  }
}

async function showSessions() {
  if (document.hidden || !seen.now || byId("key-dialog").open) return;
  let sessions = [];
  try {
    sessions = (await (await ask("v1/kvfold/sessions")).json()).data;
  } catch (error) {
    if (error instanceof Refused && error.status === 403) return; // a key without the role
  }
  byId("no-sessions").hidden = sessions.length > 0;
  showRows(
    byId("sessions"),
    sessions,
    (session) => JSON.stringify([session.tenant, session.id]),
    () => el("tr", {}, el("td", { class: "id" }), el("td", { class: "tenants" }), ...Array.from({ length: 4 }, () => el("td"))),
    (row, session) => {
      row.dataset.session = session.id;
      cells(row, [
        session.id, session.tenant || "-", count(session.turns), count(session.tokens), count(session.rematched),
        session.busy ? "busy" : seconds(session.idle_seconds),
      ]);
    },
  );
}

// Why did this request not hit?

function showReuse() {
  if (!seen.now) return;
  const id = byId("why-id").value.trim();
  const wanted = {
    all: () => true,
    gone: (request) => request.matched_tokens > request.reused_tokens,
    none: (request) => request.reused_tokens === 0,
  }[byId("why-show").value];
  const all = [...seen.now.requests].reverse().filter((request) => id || request.state !== "queued").concat(seen.ended);
  const found = all.filter((request) => wanted(request) && (!id || request.id === id)).slice(0, MAX_ENDED);
  byId("no-reuse").hidden = found.length > 0;
  setText(byId("no-reuse"), all.length ? "None of the last 256 is such a request." : "No request yet.");
  showRows(
    byId("reuse"),
    found,
    (request) => request.id,
    () => el("li", {}, el("div", { class: "line" }), el("div", { class: "bar", "aria-hidden": "true" }), el("p")),
    (item, request) => {
      const [line, bar, text] = item.children;
      item.dataset.request = request.id;
      item.dataset.reused = request.reused_tokens;
      item.dataset.matched = request.matched_tokens;
      const { prompt_tokens: asked, matched_tokens: matched, reused_tokens: reused } = request;
      const parts = [
        request.reason ?? request.state,
        `prompt ${count(asked)}, reused ${count(reused)}`,
        `reply ${count(request.completion_tokens)}`,
        `first token ${seconds(request.first_token_seconds)}`,
        request.at ? `${seconds(Math.max(0, seen.now.at - request.at))} ago` : `runs ${seconds(request.age_seconds)}`,
      ];
      if (request.recomputed_tokens) parts.push(`computed twice ${count(request.recomputed_tokens)}`);
      if (seen.now.server.sees_all_tenants && request.tenant) parts.unshift(request.tenant);
      const shown = parts.join("\n");
      if (item.dataset.shown !== shown) {
        item.dataset.shown = shown;
        line.replaceChildren(el("b", {}, request.id), ...parts.map((part) => el("span", {}, part)));
      }
      setWidths(bar, [["hit", reused], ["gone", matched - reused], ["miss", asked - matched]]);
      setText(text, request.why);
      text.title = request.gone.join(", ");
    },
  );
}

// The tree

const view = { zoom: null, focus: null };

function readTree(tree) {
  const boxes = tree.boxes.map((row) => Object.fromEntries(tree.fields.map((field, at) => [field, row[at]])));
  boxes.forEach((box, place) => {
    box.name = box.number ? `n${box.number}` : `t${box.tenant}`;
    box.place = place;
    box.children = [];
    box.above = boxes[box.parent] ?? null;
    box.above?.children.push(box);
    box.bytes = box.pages.reduce((sum, pages, group) => sum + pages * tree.groups[group].page_bytes, 0);
    box.age = tree.clock - box.last_used;
  });
  for (const box of [...boxes].reverse()) {
    const below = (of) => box.children.reduce((sum, child) => sum + of(child), 0);
    box.weights = {
      bytes: Math.max(1, box.bytes) + below((child) => child.weights.bytes),
      hits: Math.max(box.hits + 1, below((child) => child.weights.hits)),
    };
    box.end = Math.max(box.first + box.tokens, ...box.children.map((child) => child.end));
    if (!box.tokens) box.age = Math.min(...box.children.map((child) => child.age));
    box.children.sort((a, b) => a.number - b.number);
  }
  return { ...tree, boxes, roots: boxes.filter((box) => !box.above) };
}

function ageClass(age) {
  const found = [1, 10, 50, 250].findIndex((most) => age <= most);
  return `age-${found < 0 ? 4 : found}`;
}

function describe(box) {
  const whose = seen.now.server.sees_all_tenants && box.tenant ? `tenant ${box.tenant}: ` : "";
  const left = box.others ? ` ${plural(box.others, "branch")} below are not shown.`.replace("branchs", "branches") : "";
  if (!box.tokens) {
    return `${whose}all prefixes${box.tenant ? "" : " of the server"}, up to ${count(box.end)} tokens long.${left}`;
  }
  const last = box.first + box.tokens;
  const ends = box.checkpoints.length
    ? `Checkpoints at ${box.checkpoints.slice(-6).map(count).join(", ")}${box.checkpoints.length > 6 ? " and before" : ""}.`
    : "No checkpoint.";
  const kept = box.pages.map((pages, at) => `${seen.tree.groups[at].group} ${count(pages)}`).join(", ");
  return (
    `${whose}tokens ${count(box.first)} to ${count(last)}, ${plural(box.hits, "hit")}, ${bytes(box.bytes)} ` +
    `(pages: ${kept}), last used ${plural(box.age, "lookup")} ago. ${ends}${left}`
  );
}

function showTree() {
  const tree = seen.tree;
  if (!tree) return;
  const tokens = tree.shown_pages * tree.page_size;
  const of = tree.pages === null ? "" : ` of ${count(tree.pages * tree.page_size)}`;
  stat(
    "tree-text",
    tree.boxes.length
      ? `${count(tokens)}${of} cached tokens in ${plural(tree.boxes.length, "boxes").replace("boxess", "boxes")}, from left to right as ` +
          "they follow each other; a box is as high as its share among those beside it."
      : "No prefix is cached yet.",
    tree.shown_pages,
  );
  drawIcicle();
  drawStrip();
  const used = tree.boxes.filter((box) => box.tokens).sort((a, b) => b.hits * b.tokens - a.hits * a.tokens).slice(0, 20);
  showRows(
    byId("boxes"),
    used,
    (box) => box.name,
    () => el("tr", {}, el("td"), el("td", { class: "tenants" }), ...Array.from({ length: 6 }, () => el("td"))),
    (row, box) =>
      cells(row, [
        `${count(box.first)}-${count(box.first + box.tokens)}`, box.tenant || "-", count(box.tokens), count(box.hits),
        count(box.hits * box.tokens), bytes(box.bytes), `${plural(box.age, "lookup")} ago`, count(box.checkpoints.length),
      ]),
  );
}

// Boxes that are in view, with their place in the picture.
function layOut(width, height) {
  const tree = seen.tree;
  const weigh = document.querySelector("[name=weigh]:checked").value;
  const zoomed = tree.boxes.find((box) => box.name === view.zoom) ?? null;
  view.zoom = zoomed?.name ?? null;
  // One tenant alone needs no box of its own.
  const alone = tree.roots.length === 1 && tree.roots[0].children.length ? tree.roots[0].children : tree.roots;
  const tops = zoomed ? [zoomed] : alone;
  const margin = zoomed || alone !== tree.roots ? 0 : Math.min(90, width / 5);
  const first = zoomed?.first ?? 0;
  const last = Math.max(first + tree.page_size, ...tops.map((box) => box.end));
  const x = (tokens) => margin + ((width - margin) * (tokens - first)) / (last - first);
  const found = [];
  const place = (boxes, top, room) => {
    const total = boxes.reduce((sum, box) => sum + box.weights[weigh], 0);
    for (const box of boxes) {
      const high = (room * box.weights[weigh]) / total;
      const left = box.tokens ? x(box.first) : 0;
      found.push({ box, left, top, wide: (box.tokens ? x(box.first + box.tokens) : margin) - left, high });
      place(box.children, top, high);
      top += high;
    }
  };
  place(tops, 0, height);
  return { placed: found, x, first, last };
}

function drawIcicle() {
  const holder = byId("icicle");
  const width = Math.max(260, holder.clientWidth);
  const height = Math.min(520, Math.max(140, 14 * seen.tree.boxes.length));
  byId("tree-out").disabled = view.zoom === null;
  if (!seen.tree.boxes.length) return holder.replaceChildren();
  const { placed, x, first, last } = layOut(width, height);
  byId("tree-out").disabled = view.zoom === null;
  const hadFocus = holder.contains(document.activeElement);
  if (!placed.some(({ box }) => box.name === view.focus)) view.focus = placed[0].box.name;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height + 18}`, height: height + 18, role: "tree", "aria-label": "Cached prefixes" });
  for (const each of placed) picture.append(drawBox(each, x));
  const step = niceStep((last - first) / Math.max(2, width / 110));
  for (let at = Math.ceil(first / step) * step; at <= last; at += step) {
    const anchor = x(at) > width - 30 ? "end" : x(at) < 10 ? "start" : "middle";
    picture.append(
      svg("line", { class: "axis", x1: x(at), x2: x(at), y1: height, y2: height + 4 }),
      svg("text", { x: x(at), y: height + 15, "text-anchor": anchor }, `${count(at)}${at + step > last ? " tokens" : ""}`),
    );
  }
  holder.replaceChildren(picture);
  if (hadFocus) boxElement(view.focus)?.focus({ preventScroll: true });
}

function drawBox({ box, left, top, wide, high }, x) {
  const group = svg("g", {
    class: box.tokens ? ageClass(box.age) : "root",
    role: "treeitem",
    tabindex: box.name === view.focus ? 0 : -1,
    "aria-label": describe(box),
    "data-box": box.name,
    "data-hits": box.hits,
    "data-tokens": box.tokens,
  });
  group.append(svg("rect", { class: "box", x: left, y: top, width: Math.max(1, wide), height: Math.max(0.5, high) }));
  if (high >= 5) {
    for (const at of box.checkpoints) {
      group.append(svg("line", { class: "point", x1: x(at) - 1, x2: x(at) - 1, y1: top + high - Math.min(high, 9), y2: top + high }));
    }
  }
  const label = box.tokens
    ? [`${count(box.tokens)} tokens · ${plural(box.hits, "hit")}`, `${count(box.tokens)} · ${count(box.hits)}`, count(box.tokens)]
    : [box.tenant || "no tenant"];
  const fits = label.find((text) => text.length * 6 + 8 <= wide);
  if (high >= 13 && fits) group.append(svg("text", { x: left + 5, y: top + Math.min(high / 2 + 4, 15) }, fits));
  if (box.others) group.append(svg("line", { class: "others", x1: left + wide + 3, x2: left + wide + 3, y1: top + 1, y2: top + high - 1 }));
  return group;
}

function niceStep(least) {
  const power = 2 ** Math.ceil(Math.log2(Math.max(least, 16)));
  return power;
}

// Pages of each group along the prefix: which share of those in view is kept.
function drawStrip() {
  const tree = seen.tree;
  const holder = byId("strip");
  if (!tree.boxes.length) return holder.replaceChildren();
  const width = Math.max(260, holder.clientWidth);
  const { placed, x, first, last } = layOut(width, 100);
  const columns = Math.max(1, Math.min(96, Math.round((last - first) / tree.page_size)));
  const size = (last - first) / columns;
  const kept = tree.groups.map(() => new Float64Array(columns));
  const there = new Float64Array(columns);
  for (const { box } of placed) {
    if (!box.tokens) continue;
    const pages = box.tokens / tree.page_size;
    const to = Math.min(columns, Math.ceil((box.first + box.tokens - first) / size));
    for (let column = Math.max(0, Math.floor((box.first - first) / size)); column < to; column += 1) {
      const overlap = Math.min(box.first + box.tokens, first + (column + 1) * size) - Math.max(box.first, first + column * size);
      there[column] += overlap;
      box.pages.forEach((count, group) => { kept[group][column] += (overlap * count) / pages; });
    }
  }
  const high = 25;
  const picture = svg("svg", { viewBox: `0 0 ${width} ${high * tree.groups.length}`, height: high * tree.groups.length, role: "img",
    "aria-label": tree.groups.map(({ group }, at) => `${group}: ${share(sumOf(kept[at]), sumOf(there))} of the pages in view are kept`).join("; ") });
  tree.groups.forEach(({ group }, row) => {
    for (let column = 0; column < columns; column += 1) {
      if (!there[column]) continue;
      const part = kept[row][column] / there[column];
      const left = x(first + column * size);
      picture.append(svg("rect", { class: part > 0.001 ? "" : "none", x: left, y: row * high + 14, height: 9,
        width: Math.max(1, x(first + (column + 1) * size) - left - 0.5), "fill-opacity": part > 0.001 ? Math.max(0.12, part) : 1 }));
    }
    picture.append(svg("text", { x: 0, y: row * high + 11 }, `${group} ${share(sumOf(kept[row]), sumOf(there))}`));
  });
  holder.replaceChildren(picture);
}

const sumOf = (values) => values.reduce((sum, value) => sum + value, 0);
const boxElement = (name) => byId("icicle").querySelector(`[data-box="${CSS.escape(name)}"]`);

function focusBox(box) {
  const element = box && boxElement(box.name);
  if (!element) return;
  boxElement(view.focus)?.setAttribute("tabindex", -1);
  view.focus = box.name;
  element.setAttribute("tabindex", 0);
  element.focus({ preventScroll: true });
}

function zoom(name) {
  view.zoom = name;
  if (name) view.focus = name;
  drawIcicle();
  drawStrip();
  boxElement(view.focus)?.focus({ preventScroll: true });
}

function walkTree(event) {
  const name = event.target.closest("[data-box]")?.dataset.box;
  const box = seen.tree?.boxes.find((each) => each.name === name);
  if (!box) return;
  const beside = box.above ? box.above.children : seen.tree.roots;
  const at = beside.indexOf(box);
  const go = {
    ArrowRight: () => focusBox(box.children[0]),
    ArrowLeft: () => focusBox(box.above),
    ArrowDown: () => focusBox(beside[at + 1]),
    ArrowUp: () => focusBox(beside[at - 1]),
    Enter: () => zoom(box.name),
    Escape: () => zoom(seen.tree.boxes.find((each) => each.name === view.zoom)?.above?.name ?? null),
  }[event.key];
  if (!go) return;
  event.preventDefault();
  go();
}

function showBox(event) {
  const name = event.target.closest("[data-box]")?.dataset.box;
  const box = seen.tree?.boxes.find((each) => each.name === name);
  if (box) setText(byId("box-text"), describe(box));
}

// Playground

const chat = { messages: [], running: null };

function optionsOf(form) {
  const fields = [...form.querySelectorAll("#play-options input")].filter((input) => input.value !== "");
  return Object.fromEntries(fields.map((input) => [input.name, Number(input.value)]));
}

function addMessage(role, text) {
  const said = el("div", { class: "said" }, text);
  const cost = el("div", { class: "cost" });
  const block = el("div", { "data-role": role }, el("div", { class: "role" }, role), said, cost);
  byId("chat").append(block);
  showChatEnd();
  return { block, said, cost };
}

async function send() {
  const message = byId("play-message");
  if (chat.running || !message.value.trim()) return;
  const text = message.value;
  message.value = "";
  chat.messages.push({ role: "user", content: text });
  addMessage("user", text);
  const reply = addMessage("assistant", "");
  chat.running = new AbortController();
  setRunning(true);
  const begun = performance.now();
  const got = { text: "", first: null, usage: null, finish: null, sum: 0, tokens: 0 };
  try {
    await readReply(got, reply, begun);
  } catch (error) {
    const stopped = chat.running.signal.aborted;
    got.finish = stopped ? "stopped" : "error";
    if (!stopped) reply.block.append(el("div", { class: "failed" }, error.message));
  }
  if (got.text) chat.messages.push({ role: "assistant", content: got.text });
  else chat.messages.pop();
  showCost(reply, got, (performance.now() - begun) / 1000);
  chat.running = null;
  setRunning(false);
  message.focus({ preventScroll: true });
}

async function readReply(got, reply, begun) {
  const system = byId("play-system").value.trim();
  const answer = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    signal: chat.running.signal,
    body: JSON.stringify({
      ...optionsOf(byId("play-form")),
      messages: [...(system ? [{ role: "system", content: system }] : []), ...chat.messages],
      stream: true, stream_options: { include_usage: true }, logprobs: true, top_logprobs: 3,
    }),
  });
  for await (const data of eventsOf(answer)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(500, chunk.error.message);
    got.usage = chunk.usage ?? got.usage;
    const [choice] = chunk.choices;
    if (!choice) continue;
    got.finish = choice.finish_reason ?? got.finish;
    const text = choice.delta?.content ?? "";
    const tokens = choice.logprobs?.content ?? [];
    if (tokens.length) got.first ??= (performance.now() - begun) / 1000;
    got.text += text;
    got.tokens += tokens.length;
    for (const token of tokens) got.sum += token.logprob;
    reply.said.append(...tokenSpans(text, tokens));
    showChatEnd();
  }
}

// A span a token; text whose tokens do not spell it, such as parts of a character, is one span.
function tokenSpans(text, tokens) {
  if (!text) return [];
  const spelled = tokens.map((token) => token.token).join("") === text;
  const parts = spelled ? tokens.map((token) => [token.token, [token]]) : [[text, tokens]];
  return parts.map(([part, own]) => {
    if (!own.length) return el("span", {}, part);
    const worst = Math.min(...own.map((token) => token.logprob));
    const level = [0.9, 0.5, 0.1, 0.01].findIndex((least) => Math.exp(worst) >= least);
    const other = own[0].top_logprobs.map((top) => `${JSON.stringify(top.token)} ${probability(top.logprob)}`).join(", ");
    return el("span", { class: `p-${level < 0 ? 4 : level}`, "data-logprob": worst,
      title: `${probability(worst)}; likeliest: ${other}` }, part);
  });
}

const probability = (logprob) => `${short.format(100 * Math.exp(logprob))} %`;

function showCost(reply, got, took) {
  const parts = [`ended by: ${got.finish ?? "nothing"}`];
  const usage = got.usage;
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    reply.block.dataset.cached = cached;
    reply.block.dataset.prompt = usage.prompt_tokens;
    const bar = el("div", { class: "bar", "aria-hidden": "true" });
    setWidths(bar, [["hit", cached], ["miss", usage.prompt_tokens - cached]]);
    reply.cost.append(bar);
    parts.unshift(
      `prompt ${count(usage.prompt_tokens)} tokens: the first ${count(cached)} from the cache ` +
        `(${share(cached, usage.prompt_tokens)}), ${count(usage.prompt_tokens - cached)} computed`,
      `reply ${count(usage.completion_tokens)} tokens`,
    );
  }
  if (got.first !== null) {
    parts.push(`first token after ${seconds(got.first)}`);
    if (got.tokens > 1) parts.push(`${number((got.tokens - 1) / (took - got.first))} tokens a second`);
  }
  if (got.tokens) parts.push(`mean probability of a token ${probability(got.sum / got.tokens)}`);
  reply.cost.append(`${parts.join("; ")}.`);
  reply.block.dataset.finish = got.finish ?? "";
  showChatEnd();
}

function showChatEnd() {
  byId("chat").scrollTop = byId("chat").scrollHeight;
}

function setRunning(running) {
  byId("play-send").disabled = running;
  byId("play-stop").disabled = !running;
}

// Events of the page

byId("play-form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("play-message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("play-form").requestSubmit();
  }
});
byId("play-stop").addEventListener("click", () => chat.running?.abort());
byId("play-new").addEventListener("click", () => {
  chat.running?.abort();
  chat.messages = [];
  byId("chat").replaceChildren();
  byId("play-message").focus();
});
byId("minutes").addEventListener("change", showSpeed);
byId("weigh").addEventListener("change", () => showTree());
byId("tree-out").addEventListener("click", () => zoom(null));
byId("why-id").addEventListener("input", showReuse);
byId("why-show").addEventListener("change", showReuse);
byId("icicle").addEventListener("keydown", walkTree);
byId("icicle").addEventListener("focusin", showBox);
byId("icicle").addEventListener("pointerover", showBox);
byId("icicle").addEventListener("click", (event) => {
  const name = event.target.closest("[data-box]")?.dataset.box;
  if (name) zoom(view.zoom === name ? null : name);
});
new ResizeObserver(() => seen.tree && (drawIcicle(), drawStrip())).observe(byId("icicle"));
byId("key-button").addEventListener("click", askForKey);
byId("key-form").addEventListener("submit", (event) => {
  key = event.submitter?.value === "forget" ? "" : byId("key").value.trim();
  byId("key").value = "";
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
});
byId("key-dialog").addEventListener("close", () => {
  stopWatching();
  watch();
});
document.addEventListener("visibilitychange", () => (document.hidden ? stopWatching() : watch()));

watch();
setInterval(showSessions, SESSIONS_MS);
