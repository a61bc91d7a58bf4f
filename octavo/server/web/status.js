// The status page: asks the server for its figures once a second and shows them. It keeps the last
// minutes itself (in this tab, across reloads), writes text nodes alone, and talks to nobody else.
"use strict";

const POLL_MS = 1000;
const WINDOW_S = 300;     // Kept, and shown once there is so much.
const WINDOW_MIN_S = 60;  // Shown at least.
const STORE = "octavo-status";
const $ = (id) => document.getElementById(id);

let key = sessionStorage.getItem(STORE + "-key") || "";
let samples = readHistory();
let policyHash = null;
let lastAnswer = null;

// --- Talking to the server ---

class KeyNeeded extends Error {}

async function get(path) {
  const headers = key ? { Authorization: "Bearer " + key } : {};
  const reply = await fetch(path, { headers, cache: "no-store", credentials: "omit" });
  if (reply.status === 401) throw new KeyNeeded();
  if (!reply.ok) throw new Error(path + ": " + reply.status);
  return reply.json();
}

async function poll() {
  try {
    const [loads, info, update] = await Promise.all([
      get("/v1/loads?include=queues"), get("/server_info"), get("/octavo/v1/update")]);
    if (info.policy_hash !== policyHash) {
      showPolicy(await get("/octavo/v1/policy"));
      policyHash = info.policy_hash;
    }
    $("key-form").hidden = true;
    $("figures").hidden = false;
    lastAnswer = new Date();
    show(loads.loads[0], info, update);
  } catch (error) {
    if (error instanceof KeyNeeded) {
      askForKey();
    } else {
      showSilence(error);
    }
  }
  document.body.dataset.polls = Number(document.body.dataset.polls || 0) + 1;
  setTimeout(poll, POLL_MS);
}

function askForKey() {
  if (key) $("key-note").textContent = "The server does not take this key.";
  key = "";
  sessionStorage.removeItem(STORE + "-key");
  $("figures").hidden = true;
  $("key-form").hidden = false;
  setState("warn", "locked");
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  $("key").value = "";
  sessionStorage.setItem(STORE + "-key", key);
  poll();
});

function showSilence(error) {
  document.body.classList.add("stale");
  const since = lastAnswer ? ", no answer since " + lastAnswer.toLocaleTimeString() : "";
  setState("bad", "unreachable" + since);
  $("state").title = String(error.message || error);
}

// --- Text ---

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const one = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

function count(value) { return number.format(value); }

function rate(value) { return value >= 100 ? number.format(value) : one.format(value); }

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return (unit === 0 || value >= 100 ? number : one).format(value) + " " + units[unit];
}

function seconds(value) {
  if (value < 0.0995) return (value * 1000).toPrecision(2) + " ms";
  if (value < 120) return value.toPrecision(value < 1 ? 2 : 3) + " s";
  return count(value / 60) + " min";
}

function ago(unixSeconds) {
  const age = Math.max(Date.now() / 1000 - unixSeconds, 0);
  if (age < 90) return count(age) + " s ago";
  if (age < 5400) return count(age / 60) + " min ago";
  return count(age / 3600) + " h ago";
}

// --- Elements ---

// Text and exact value of a figure; the value is what a reader of the page's markup compares.
function put(id, text, value) {
  $(id).textContent = text;
  $(id).dataset.value = value;
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function list(rows) {
  return rows.flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)]);
}

function code(text) { return make("code", {}, text); }

function setState(kind, text) {
  $("state").className = "state " + kind;
  if ($("state-text").textContent !== text) $("state-text").textContent = text;
}

// --- Figures ---

function show(load, info, update) {
  const totals = info.internal_states[0];
  document.body.classList.remove("stale");
  document.title = info.served_model_name + " – Octavo";
  $("model").textContent = info.served_model_name;
  showState(info, totals, update);

  put("throughput", rate(load.gen_throughput), load.gen_throughput);
  put("tokens", count(totals.generation_tokens_total), totals.generation_tokens_total);
  put("prompt-tokens", count(totals.prompt_tokens_total), totals.prompt_tokens_total);
  put("cached", count(totals.cached_tokens_total), totals.cached_tokens_total);
  put("running", count(load.num_running_reqs), load.num_running_reqs);
  put("queued", count(load.num_waiting_reqs), load.num_waiting_reqs);
  put("requests-note", count(totals.num_requests_total) + " so far, at most " +
      count(load.max_running_requests) + " at once; " + count(totals.num_aborted_total) +
      " aborted, " + count(totals.num_retractions_total) + " retractions",
      totals.num_requests_total);
  put("kv-share", percent(load.num_used_tokens, load.max_total_num_tokens), load.token_usage);
  $("kv-meter").firstElementChild.style.width = 100 * Math.min(load.token_usage, 1) + "%";
  $("kv-meter").setAttribute("aria-label", $("kv-share").textContent + " of the KV cache in use");
  put("kv-note", count(load.num_used_tokens) + " of " + count(load.max_total_num_tokens) +
      " tokens" + (info.kv_cache_dtype ? ", in " + info.kv_cache_dtype : ""),
      load.num_used_tokens);

  remember(load, totals);
  showWeights(info);
  showUpdate(info, update);
  drawHistory();
  $("footer").textContent = "Octavo " + info.version + ", " + info.backend + ", " +
      info.num_threads + (info.num_threads === 1 ? " thread" : " threads") + ", context " +
      count(info.context_length) + " tokens";
}

function percent(part, whole) {
  const share = whole > 0 ? 100 * part / whole : 0;
  return (share >= 10 || share === 0 ? number : one).format(share) + " %";
}

function showState(info, totals, update) {
  if (info.status !== "ready") {
    setState("warn", info.status);
  } else if (totals.paused) {
    setState("warn", "paused, " + count(totals.num_paused_reqs) + " held");
  } else if (update.open) {
    setState("warn", "taking an update");
  } else {
    setState("good", "ready");
  }
  $("state").title = "";
}

function showWeights(info) {
  put("weight-version", info.weight_version, info.weight_version);
  const rows = [
    ["format", info.weight_format],
    ["recipe", info.recipe + (info.emulated ? ", emulated on this hardware" : "")],
    ["size", bytes(info.weight_bytes)],
    ["digest", info.weight_digest ? code(info.weight_digest) : "not known"],
    ["policy", code(info.policy_hash)],
  ];
  $("weights").replaceChildren(...list(rows));
}

// Where the time of an update went. What no other phase accounts for is waiting for the sender.
function phasesOf(last) {
  const transfer = last.open_seconds - last.put_seconds - last.seal_seconds - last.commit_seconds;
  return [
    ["receive", "from the sender", Math.max(transfer, 0)],
    ["stage", "quantize and pack", last.put_seconds],
    ["seal", "check and digest", last.seal_seconds],
    ["swap", "wait for a step boundary", last.commit_seconds],
  ];
}

function showUpdate(info, update) {
  const parts = [];
  if (update.open) {
    parts.push(make("p", { class: "open" }, "Receiving version " + update.target_version +
        " from " + update.holder + ": " + count(update.buckets) + " buckets, idle for " +
        seconds(update.idle_seconds)));
  }
  const last = update.last;
  if (last) {
    const phases = phasesOf(last);
    const bar = make("div", { class: "bar", role: "img", "aria-label": "Phases of the update" });
    const items = make("ul", { class: "phases" });
    phases.forEach(([name, what, time], i) => {
      const piece = make("i", { class: "phase-" + i });
      piece.style.flexGrow = 1000 * time / last.open_seconds;
      bar.append(piece);
      items.append(make("li", {}, make("i", { class: "phase-" + i }),
          make("span", {}, make("b", { "data-phase": name, "data-value": time }, seconds(time)),
              name + ": " + what)));
    });
    parts.push(
        make("p", {}, make("b", { id: "update-version", "data-value": last.version },
            "Version " + last.version), " went live " + ago(last.unix_seconds) + " after " +
            seconds(last.open_seconds) + "; serving paused for ",
            make("b", { id: "update-pause", "data-value": last.pause_ms },
                seconds(last.pause_ms / 1000))),
        bar, items,
        make("p", { class: "quiet" }, count(last.tensors) + " tensors, " + bytes(last.bytes_in) +
            " received, " + bytes(last.bytes_staged) + " staged; of " + count(last.in_flight) +
            " requests in flight " + count(last.retracted) + " were retracted and " +
            count(last.aborted) + " aborted"));
  } else if (!update.open) {
    parts.push(make("p", { id: "no-update" }, "None yet: the weights are those that were loaded, in " +
        seconds(info.load_seconds) + "."));
  }
  $("update").replaceChildren(...parts);
}

// --- The last minutes ---

function readHistory() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(STORE + "-samples") || "[]");
    return Array.isArray(kept) ? kept : [];
  } catch {
    return [];
  }
}

// [seconds since the epoch, generated tokens so far, running, queued]
function remember(load, totals) {
  const now = Date.now() / 1000;
  const last = samples[samples.length - 1];
  if (last && last[1] > totals.generation_tokens_total) samples = [];  // Another process.
  samples.push([now, totals.generation_tokens_total, load.num_running_reqs, load.num_waiting_reqs]);
  samples = samples.filter(([time]) => time > now - WINDOW_S);
  sessionStorage.setItem(STORE + "-samples", JSON.stringify(samples));
}

// Tokens a second between one poll and the one about two seconds before it.
function rates() {
  const points = [];
  for (let i = 1, from = 0; i < samples.length; i += 1) {
    while (from < i - 1 && samples[i][0] - samples[from + 1][0] >= 2) from += 1;
    const elapsed = samples[i][0] - samples[from][0];
    if (elapsed > 0) points.push([samples[i][0], (samples[i][1] - samples[from][1]) / elapsed]);
  }
  return points;
}

function drawHistory() {
  draw("throughput-spark", [rates()], " tok/s");
  draw("requests-spark", [samples.map((s) => [s[0], s[2]]), samples.map((s) => [s[0], s[3]])], "");
}

function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// Lines over the last minutes in a box of 100 by 100; the first one is filled.
function draw(id, series, unit) {
  const now = Date.now() / 1000;
  const span = Math.min(Math.max(now - samples[0][0], WINDOW_MIN_S), WINDOW_S);
  const top = niceTop(Math.max(...series.flat().map((point) => point[1]), 0));
  const x = (time) => (100 * (1 - (now - time) / span)).toFixed(2);
  const y = (value) => (98 - 92 * value / top).toFixed(2);
  const picture = svg("svg", { viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" });
  picture.append(svg("path", { class: "base", d: "M0 98H100M0 6H100" }));
  series.forEach((points, i) => {
    if (points.length === 0) return;
    const line = points.map(([time, value]) => x(time) + " " + y(value)).join("L");
    if (i === 0) {
      const from = x(points[0][0]);
      const to = x(points[points.length - 1][0]);
      picture.append(svg("path", { class: "area", d: "M" + from + " 98L" + line + "L" + to + " 98Z" }));
    }
    picture.append(svg("path", { class: i === 0 ? "line" : "line second", d: "M" + line }));
  });
  $(id).replaceChildren(picture, make("span", { class: "top" }, count(top) + unit),
      make("span", { class: "from" }, ago(now - span)), make("span", { class: "to" }, "now"));
}

function niceTop(value) {
  let step = 1;
  while (true) {
    for (const factor of [1, 2, 5]) if (value <= factor * step) return factor * step;
    step *= 10;
  }
}

// --- Precision map ---

// What one square stands for: the weights of one module, or of one module of all experts.
// "model.layers.3.mlp.experts.17.up_proj.weight" -> "mlp.experts.*.up_proj".
function moduleOf(tensor) {
  const prefix = new RegExp("^.*?\\blayers\\." + tensor.layer + "\\.");
  const path = tensor.layer === null ? tensor.name : tensor.name.replace(prefix, "");
  return path.replace(/\.experts\.\d+\./, ".experts.*.").replace(/\.[^.]+$/, "");
}

function groupOf(module) {
  const dot = module.lastIndexOf(".");
  if (/norm/.test(module.slice(dot + 1))) return "norms";
  return dot < 0 ? "" : module.slice(0, dot).replace(/^.*\.(?=.*experts)/, "").replace(".*", "");
}

function labelOf(module) {
  return module.slice(module.lastIndexOf(".") + 1).replace(/_proj$/, "")
      .replace(/_?layernorm$/, "").replace(/_norm$/, "").replace(/_/g, " ");
}

// module -> its tensors, for every layer (null: outside).
function layersOf(tensors) {
  const layers = new Map();
  for (const tensor of tensors) {
    if (!layers.has(tensor.layer)) layers.set(tensor.layer, new Map());
    const modules = layers.get(tensor.layer);
    const module = moduleOf(tensor);
    if (!modules.has(module)) modules.set(module, []);
    modules.get(module).push(tensor);
  }
  return layers;
}

// Columns by group: attention, norms and MLP stand in the order of the first layer that has them.
function columnsOf(layers) {
  const groups = new Map();
  for (const [layer, modules] of layers) {
    for (const module of layer === null ? [] : modules.keys()) {
      const group = groupOf(module);
      if (!groups.has(group)) groups.set(group, new Set());
      groups.get(group).add(module);
    }
  }
  const norms = groups.get("norms");
  groups.delete("norms");
  if (norms) groups.set("norms", norms);
  return groups;
}

// Formats of a module's matrices, most bytes first; its biases only where there is nothing else.
function formatsOf(tensors) {
  const matrices = tensors.filter((tensor) => tensor.shape.length > 1);
  const weights = new Map();
  for (const tensor of matrices.length > 0 ? matrices : tensors) {
    weights.set(tensor.format, (weights.get(tensor.format) || 0) + tensor.bf16_bytes);
  }
  return [...weights.keys()].sort((a, b) => weights.get(b) - weights.get(a));
}

let chosen = null;

function square(module, tensors, where) {
  const formats = formatsOf(tensors);
  const button = make("button", { type: "button", class: formats[0], "data-module": module,
    "data-format": formats.join(" "), "aria-label": where + ", " + module + ": " + formats.join(" and ") });
  if (formats.length > 1) {
    button.style.setProperty("background", "linear-gradient(135deg, var(--" + formats[0] +
        ") 50%, var(--" + formats[1] + ") 50%)", "important");
  }
  const tell = () => showDetail(button, module, tensors, formats);
  button.addEventListener("mouseenter", tell);
  button.addEventListener("focus", tell);
  button.addEventListener("click", tell);
  return button;
}

function showDetail(button, module, tensors, formats) {
  if (chosen) chosen.classList.remove("chosen");
  chosen = button;
  button.classList.add("chosen");
  const main = tensors.find((tensor) => tensor.format === formats[0]) || tensors[0];
  const name = tensors.length > 1 && module.includes("*")
      ? main.name.replace(/\.experts\.\d+\./, ".experts.*.") : main.name;
  const sum = (field) => tensors.reduce((total, tensor) => total + tensor[field], 0);
  const rows = [
    ["format", make("span", {}, ...formats.flatMap((format) =>
        [make("i", { class: "swatch " + format }), format + " "]))],
    ["shape", main.shape.join(" × ") + (tensors.length > 1 ? ", " + count(tensors.length) + " tensors" : "")],
    ["stored", bytes(sum("stored_bytes")) + " of " + bytes(sum("bf16_bytes")) + " in BF16"],
    ["rule", make("span", { id: "detail-rule" }, main.rule)],
  ];
  if (main.shadowed.length > 0) rows.push(["it beat", main.shadowed.join(", ")]);
  $("detail").replaceChildren(make("h3", {}, name), make("dl", {}, ...list(rows)),
      make("p", { class: "reason quiet", id: "detail-reason" }, main.reason));
}

function showLegend(policy) {
  const formats = Object.entries(policy.formats);
  const bar = make("div", { class: "bar", role: "img", "aria-label": "Stored bytes by format" });
  const keys = make("div", { class: "keys" });
  for (const [format, sizes] of formats) {
    const piece = make("i", { class: format });
    piece.style.flexGrow = sizes.stored_bytes;
    bar.append(piece);
    keys.append(make("div", { "data-legend": format, "data-value": sizes.tensors },
        make("i", { class: "swatch " + format }), format + " ",
        make("span", {}, count(sizes.tensors) + " tensors, " + bytes(sizes.stored_bytes))));
  }
  $("legend").replaceChildren(bar, keys);
  $("map-note").textContent = bytes(policy.stored_bytes) + " stored, " +
      percent(policy.stored_bytes, policy.bf16_bytes) + " of the size in BF16";
}

function showPolicy(policy) {
  showLegend(policy);
  const layers = layersOf(policy.tensors);
  const groups = columnsOf(layers);
  const outside = make("div", { class: "outside" });
  for (const [module, tensors] of layers.get(null) || []) {
    const button = square(module, tensors, "outside the layers");
    button.append(labelOf(module.replace(/^model\./, "")));
    outside.append(button);
  }
  const top = make("tr", {}, make("th"));
  const names = make("tr", { class: "names" }, make("th", { scope: "col" }, "layer"));
  for (const [group, modules] of groups) {
    top.append(make("th", { class: "group", colspan: modules.size, scope: "colgroup" }, group));
    for (const module of modules) names.append(make("th", { scope: "col" }, labelOf(module)));
  }
  const body = make("tbody");
  for (const [layer, modules] of layers) {
    if (layer === null) continue;
    const row = make("tr", {}, make("th", { scope: "row" }, String(layer)));
    for (const columns of groups.values()) {
      for (const module of columns) {
        const tensors = modules.get(module);
        row.append(make("td", {}, ...(tensors ? [square(module, tensors, "layer " + layer)] : [])));
      }
    }
    body.append(row);
  }
  const table = make("table", {}, make("thead", {}, top, names), body);
  table.style.minWidth = 40 + 21 * (names.children.length - 1) + "px";
  $("map").replaceChildren(outside, table);
  chosen = null;
  $("detail").replaceChildren(make("p", { class: "quiet" },
      "Point at a square, or tap it: which rule decided its format, and why."));
}

poll();
