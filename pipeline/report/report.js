"use strict";
// The page: headline, curves, browser of rollouts, settings. All text of runs is inserted as text nodes.

const VERDICT_COLOURS = { ACCEPTED: "var(--c2)", WRONG_ANSWER: "var(--c4)", TIME_LIMIT: "var(--c3)", MEMORY_LIMIT: "var(--c6)", OUTPUT_LIMIT: "var(--c6)", RUNTIME_ERROR: "var(--c1)", COMPILE_ERROR: "var(--c5)", NO_CODE: "var(--c7)", NO_VERDICT: "var(--line)" };
const PHASE_NAMES = { generate: "generate", grade_wait: "wait for grades", log_probs: "log-probabilities", backward: "forward and backward", refresh: "refresh" };
const ROW = 26;
const colour = (i) => `var(--c${i % 8})`;
const words = (name) => name.toLowerCase().replaceAll("_", " ");
const percent = (x) => x == null ? "–" : `${(100 * x).toFixed(1)} %`;

const CPP = /(\/\/[^\n]*|\/\*[\s\S]*?(?:\*\/|$))|("(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)|(^[ \t]*#[^\n]*)|(\b(?:0[xXbB][\da-fA-F']+|\d[\d']*(?:\.\d*)?(?:[eE][+-]?\d+)?)[uUlLfF]*\b)|\b(alignas|auto|break|case|catch|class|concept|const|constexpr|continue|default|delete|do|else|enum|explicit|export|extern|for|friend|goto|if|inline|namespace|new|noexcept|operator|private|protected|public|requires|return|sizeof|static|struct|switch|template|this|throw|try|typedef|typename|union|using|virtual|volatile|while|true|false|nullptr)\b|\b(void|bool|char|short|int|long|float|double|signed|unsigned|size_t|string|vector|map|set|pair|array|deque|queue|stack|priority_queue|unordered_map|unordered_set|u?int(?:8|16|32|64)_t|__int128)\b/gm;
const KINDS = [null, "c", "s", "d", "n", "k", "t"];

function highlight(text) {
  const code = element("code"), put = (kind, part) => code.append(kind ? element("span", { class: kind }, part) : part);
  let end = 0;
  for (const match of text.matchAll(CPP)) {
    if (match.index > end) put(null, text.slice(end, match.index));
    put(KINDS[match.findIndex((group, i) => i > 0 && group !== undefined)], match[0]);
    end = match.index + match[0].length;
  }
  put(null, text.slice(end));
  return code;
}

function chip(verdict) {
  const node = element("span", { class: "chip" }, words(verdict || "none"));
  node.style.setProperty("--verdict", VERDICT_COLOURS[verdict] || "var(--c7)");
  return node;
}

function headline(run) {
  const box = (name, big, small) => element("div", { class: "card" }, element("div", { class: "soft" }, name), element("div", { class: "big" }, big), element("div", { class: "soft" }, small));
  const e = run.evaluations, first = e[0], last = e[e.length - 1];
  const interval = (one) => `95 % interval ${percent(one.low)} to ${percent(one.high)}, ${one.n} completions`;
  const cards = [];
  if (first) cards.push(box("held-out pass@1, step " + first.step, percent(first.value), interval(first)));
  if (e.length > 1) {
    const apart = first.high < last.low || last.high < first.low, paired = (run.summary.comparison || {})["pass@1"];
    const signed = (x) => `${x >= 0 ? "+" : "−"}${percent(Math.abs(x))}`;
    const compared = paired ? `95 % interval ${signed(paired.low)} to ${signed(paired.high)}, p = ${paired.p_value.toPrecision(2)}` : apart ? "the intervals are apart" : "the intervals overlap; see scripts/eval.py --compare";
    cards.push(box("held-out pass@1, step " + last.step, percent(last.value), interval(last)));
    cards.push(box("change", signed(last.value - first.value), compared));
  }
  const steps = run.steps.length, seconds = run.step_seconds.reduce((sum, x) => sum + (x || 0), 0);
  cards.push(box("trained", `${run.v.length ? run.v[0].length : 0} numbers`, `${steps} steps in ${(seconds / 60).toFixed(1)} minutes`));
  return element("div", { class: "headline" }, ...cards);
}

function curves(run) {
  const one = (title, names, options) => lineChart(title, names.map(([key, name], i) => ({ name, colour: colour(i), steps: run.steps, values: run.curves[key] })), options);
  const charts = [
    lineChart("Share of completions that pass", [
      { name: "training rollouts", colour: colour(0), steps: run.steps, values: run.curves.pass_rate, band: run.intervals },
      { name: "held-out pass@1, 95 % interval", colour: colour(1), steps: run.evaluations.map((e) => e.step), values: run.evaluations.map((e) => e.value), points: run.evaluations },
      ...(run.validation.length ? [{ name: "validation pass@1", colour: colour(2), steps: run.validation.map((e) => e.step), values: run.validation.map((e) => e.value), points: run.validation }] : [])], { low: 0, high: 1 }),
    one("Reward and compile rate", [["reward", "mean reward"], ["compile_rate", "compiles"]], { low: 0, high: 1 }),
    stackedChart("Verdicts of the training rollouts", run.steps, Object.keys(VERDICT_COLOURS).filter((name) => run.verdicts[name]).map((name) => ({ name: words(name), colour: VERDICT_COLOURS[name], values: run.verdicts[name] })), { share: true }),
    stackedChart("Seconds of a step, by phase", run.steps, Object.entries(run.seconds).map(([name, values], i) => ({ name: PHASE_NAMES[name] || name, colour: colour(i), values })), { unit: " s" }),
    lineChart("Tokens of each replica", run.lanes.map((lane, i) => ({ name: lane.name, colour: colour(i), steps: run.steps, values: lane.tokens })), { low: 0 }),
    ...run.lanes.map((lane) => stackedChart(`Seconds of ${lane.name}`, run.steps, Object.entries(lane.seconds).map(([name, values], i) => ({ name, colour: colour(i), values })), { unit: " s" })),
    run.v.length ? lineChart(`All ${run.v[0].length} trained numbers`, run.v[0].map((_, i) => ({ name: `v${i}`, colour: colour(i), steps: run.steps, values: run.v.map((v) => v[i]) })), { thin: true, legend: false }) : null,
    one("Share of the update that survives the merge", [["kept_share", "kept share"]], { low: 0 }),
    one("Distance, nats per token", [["kl_base", "KL to the base"], ["mismatch", "engine against trainer"], ["off_policy", "from the policy that drew"]], {}),
    one("Entropy, nats per token", [["entropy", "entropy"]], {}),
    one("Size of the update", [["v_norm", "‖v‖"], ["delta_norm", "‖ΔW‖ / ‖W‖"], ["grad_norm", "gradient"]], {}),
    one("Tokens of a completion", [["mean_length", "mean length"]], { low: 0 }),
    one("Shares", [["zero_variance_groups", "groups without a signal"], ["truncated", "cut at the limit"], ["grading_hidden", "grading hidden"]], { low: 0, high: 1 }),
    laneChart("What ran when, last steps", run.timeline.lanes, run.timeline.steps, { generate: colour(0), evaluate: colour(4), train: colour(1), refresh: colour(3), grade: colour(2) }),
    lineChart("Idle share of a step", [["device", "generating and training"], ["graders", "graders"]].map(([key, name], i) => ({ name, colour: colour(i), steps: run.steps, values: run.idle[key] })), { low: 0, high: 1 }),
    one("Tokens a second", [["tokens_per_second", "generation"]], { low: 0 }),
  ];
  return element("div", { class: "grid" }, ...charts);
}

function overview(runs) {
  const held = runs.map((run, i) => ({ name: run.name, colour: colour(i), steps: run.evaluations.map((e) => e.step), values: run.evaluations.map((e) => e.value), points: run.evaluations }));
  const train = (key) => runs.map((run, i) => ({ name: run.name, colour: colour(i), steps: run.steps, values: run.curves[key] }));
  return element("div", { class: "grid" }, lineChart("Held-out pass@1, 95 % intervals", held, { low: 0, high: 1 }), lineChart("Pass rate of the training rollouts", train("pass_rate"), { low: 0, high: 1 }), lineChart("Mean reward", train("reward"), { low: 0, high: 1 }), lineChart("KL to the base, nats per token", train("kl_base"), {}));
}

function rolloutAt(run, i) {
  return Object.fromEntries(Object.entries(run.rollouts).map(([name, column]) => [name, column[i]]));
}

function side(title, r) {
  const numbers = [`step ${r.step}`, r.set, r.reward == null ? null : `reward ${short(r.reward)}`, r.advantage == null ? null : `advantage ${short(r.advantage)}`, r.total ? `${r.passed} of ${r.total} tests` : null, r.tokens == null ? null : `${r.tokens} tokens`].filter(Boolean).join(" · ");
  return element("div", { class: "card" }, element("h3", {}, title + " ", chip(r.verdict)), element("p", { class: "soft" }, numbers), element("pre", { class: "program" }, highlight(r.completion || "")),
    r.tests ? element("p", {}, element("span", { class: "soft" }, "tests "), element("span", { class: "letters", title: "A accepted, W wrong answer, T time, M memory, O output limit, R runtime error" }, r.tests)) : null,
    r.message ? element("pre", { class: "wrap" }, r.message) : null);
}

function testTable(problem, first, second) {
  if (!problem || !problem.tests.length) return null;
  const letter = (r, i) => r && r.tests ? r.tests[i] || "–" : "–";
  const rows = problem.tests.map(([input, output], i) => element("tr", {}, element("td", {}, String(i + 1)), element("td", {}, element("pre", { class: "wrap" }, input)), element("td", {}, element("pre", { class: "wrap" }, output)), element("td", {}, letter(first, i) + (second ? " → " + letter(second, i) : ""))));
  return element("table", {}, element("tr", {}, ...["test", "input", "expected output", "verdict"].map((name) => element("th", {}, name))), ...rows);
}

function browser(run) {
  const data = run.rollouts, total = data.step.length;
  if (!total) return element("p", { class: "soft" }, "This run has no rollouts.");
  const state = { kept: [], at: -1, compare: false };
  const values = (column) => [...new Set(column)].sort((a, b) => (a > b ? 1 : -1));
  const select = (label, options, name) => element("select", { "aria-label": label, id: name, onchange: filter }, element("option", { value: "" }, label), ...options.map((value) => element("option", { value }, words(String(value)))));
  const set = select("all sets", values(data.set), "set"), verdict = select("all verdicts", values(data.verdict), "verdict");
  const step = select("all steps", values(data.step), "step");
  const least = element("input", { type: "number", step: "0.1", placeholder: "reward ≥", id: "least", "aria-label": "least reward", oninput: filter });
  const most = element("input", { type: "number", step: "0.1", placeholder: "reward ≤", id: "most", "aria-label": "greatest reward", oninput: filter });
  const search = element("input", { type: "search", placeholder: "problem or program text", id: "search", "aria-label": "search", oninput: filter });
  const pair = element("button", { id: "pair", onclick: () => { state.compare = !state.compare; pair.classList.toggle("on", state.compare); detail(); } }, "before / after");
  const count = element("span", { class: "soft", id: "count" });
  const space = element("div"), list = element("div", { class: "list", id: "list", tabindex: 0, onscroll: paint, onkeydown: keys }, space), pane = element("div", { id: "detail" });

  function filter() {
    const text = search.value.toLowerCase(), low = least.value === "" ? -Infinity : Number(least.value), high = most.value === "" ? Infinity : Number(most.value);
    const bounded = least.value !== "" || most.value !== "";
    state.kept = [];
    for (let i = 0; i < total; i++) {
      if (set.value && data.set[i] !== set.value) continue;
      if (verdict.value && data.verdict[i] !== verdict.value) continue;
      if (step.value && String(data.step[i]) !== step.value) continue;
      if (bounded && (data.reward[i] == null || data.reward[i] < low || data.reward[i] > high)) continue;
      if (text && !String(data.problem[i]).toLowerCase().includes(text) && !(data.completion[i] || "").toLowerCase().includes(text)) continue;
      state.kept.push(i);
    }
    count.textContent = `${state.kept.length.toLocaleString("en")} of ${total.toLocaleString("en")} rollouts` + (run.left_out ? `; ${run.left_out.toLocaleString("en")} more were left out (--max-rollouts)` : "");
    space.style.height = `${state.kept.length * ROW}px`;
    list.scrollTop = 0;
    state.at = state.kept.length ? 0 : -1;
    paint(); detail();
  }

  function paint() { // only the rows in sight exist
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 5), last = Math.min(state.kept.length, first + Math.ceil(list.clientHeight / ROW) + 10);
    const rows = [];
    for (let n = first; n < last; n++) {
      const i = state.kept[n];
      const row = element("div", { class: "row" + (n === state.at ? " on" : ""), onclick: () => { state.at = n; paint(); detail(); } },
        element("span", {}, String(data.step[i])), element("span", { class: "soft" }, data.set[i]), element("span", {}, String(data.problem[i])), element("span", {}, chip(data.verdict[i])),
        element("span", {}, short(data.reward[i])), element("span", { class: "soft" }, data.total[i] ? `${data.passed[i]}/${data.total[i]}` : "–"), element("span", { class: "soft" }, (data.completion[i] || "").slice(0, 160).replace(/\s+/g, " ")));
      row.style.top = `${n * ROW}px`;
      rows.push(row);
    }
    space.replaceChildren(...rows);
  }

  function keys(event) {
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: 14, PageUp: -14 }[event.key];
    if (!move || !state.kept.length) return;
    event.preventDefault();
    state.at = Math.min(state.kept.length - 1, Math.max(0, state.at + move));
    if (state.at * ROW < list.scrollTop) list.scrollTop = state.at * ROW;
    if ((state.at + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (state.at + 1) * ROW - list.clientHeight;
    paint(); detail();
  }

  function ends(i) { // the first and the last rollout of the same problem (and sample) in the same set
    let first = i, last = i;
    for (let j = 0; j < total; j++) {
      if (data.problem[j] !== data.problem[i] || data.set[j] !== data.set[i] || (data.sample[j] ?? null) !== (data.sample[i] ?? null)) continue;
      if (data.step[j] < data.step[first]) first = j;
      if (data.step[j] > data.step[last]) last = j;
    }
    return [first, last];
  }

  function detail() {
    if (state.at < 0) { pane.replaceChildren(element("p", { class: "soft" }, "No rollout matches the filters.")); return; }
    const i = state.kept[state.at], r = rolloutAt(run, i), problem = run.problems[r.problem];
    const [first, last] = state.compare ? ends(i) : [i, i];
    const before = rolloutAt(run, first), after = first === last ? null : rolloutAt(run, last);
    const programs = after ? [side("before", before), side("after", after)] : [side(state.compare ? "the only rollout of this problem" : "program", r)];
    const about = problem ? [problem.source, problem.difficulty, `${problem.time_limit} s`].filter(Boolean).join(" · ") : "the data set could not be read again";
    pane.replaceChildren(element("div", { class: "sides" }, ...programs),
      element("div", { class: "sides" }, element("div", { class: "card" }, element("h3", {}, `prompt of ${r.problem}`), element("p", { class: "soft" }, about), problem ? element("pre", { class: "wrap prompt" }, problem.prompt) : null),
        element("div", { class: "card" }, element("h3", {}, "tests (the first ones)"), testTable(problem, before, after) || element("p", { class: "soft" }, "none"))));
  }

  const head = element("div", { class: "row head" }, ...["step", "set", "problem", "verdict", "reward", "tests", "program"].map((name) => element("span", {}, name)));
  const box = element("div", {}, element("div", { class: "filters" }, set, step, verdict, least, most, search, pair, count), run.note ? element("p", { class: "soft" }, run.note) : null, head, list, pane);
  requestAnimationFrame(filter);
  return box;
}

function messages(run) {
  if (!run.messages.length) return element("p", { class: "soft" }, "No program was refused with a message.");
  const rows = run.messages.map(([verdict, message, count, share]) => element("tr", {}, element("td", {}, count.toLocaleString("en")), element("td", {}, percent(share)), element("td", {}, chip(verdict)), element("td", {}, element("pre", { class: "wrap" }, message))));
  return element("table", { id: "messages" }, element("tr", {}, ...["rollouts", "share", "verdict", "first message"].map((name) => element("th", {}, name))), ...rows);
}

function canary(run) {
  const result = run.summary.canary;
  if (!result) return [];
  const failure = result.first_failure ? `; first failure: ${result.first_failure.problem}, ${words(result.first_failure.verdict)}, ${result.first_failure.message}` : "";
  return [element("p", { class: "soft", id: "canary" }, `Canary: ${result.accepted} of ${result.graded} known-right solutions were accepted${failure}.`)];
}

function settings(run) {
  const lines = (record) => Object.entries(record || {}).filter(([, value]) => value !== null && typeof value !== "object").map(([name, value]) => element("div", {}, element("span", { class: "soft" }, name), element("b", {}, String(value))));
  const parts = [["Settings", run.config], ["Versions", run.summary.versions], ["Grader", run.grader], ["Summary", run.summary]].filter(([, record]) => record && Object.keys(record).length);
  return element("div", {}, ...parts.map(([name, record]) => element("div", { class: "card", style: "margin-bottom:14px" }, element("h3", {}, name), element("div", { class: "settings" }, ...lines(record)))));
}

function show(report, chosen) {
  const run = report.runs[chosen], many = report.runs.length > 1;
  const tabs = report.runs.map((one, i) => element("button", { class: i === chosen ? "on" : "", onclick: () => show(report, i) }, one.name));
  const stopped = run.summary.stopped ? element("p", {}, `Stopped early: ${run.summary.stopped}.`) : null;
  document.getElementById("page").replaceChildren(
    element("h1", {}, many ? `${report.runs.length} runs` : run.name), element("p", { class: "soft" }, `made ${report.made}`),
    ...(many ? [element("h2", {}, "All runs"), overview(report.runs), element("div", { class: "tabs" }, ...tabs)] : []),
    element("h2", {}, many ? run.name : "Result"), headline(run), ...(stopped ? [stopped] : []), ...(run.summary.warnings || []).map((text) => element("p", {}, `Warning: ${text}.`)), ...canary(run),
    element("h2", {}, "Curves"), curves(run), element("h2", {}, "Most frequent messages of the judge"), messages(run), element("h2", {}, "Rollouts"), browser(run), element("h2", {}, "Settings and versions"), settings(run));
  document.body.dataset.ready = "yes";
}

async function start() {
  const packed = Uint8Array.from(atob(document.getElementById("data").textContent), (c) => c.charCodeAt(0));
  const text = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  show(JSON.parse(text), 0);
}

start().catch((error) => { document.getElementById("page").textContent = `The report cannot be shown: ${error}. It needs a browser of 2023 or newer.`; });
