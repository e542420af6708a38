// The page: what is drawn, and what clicks, keys and typing do. All text goes in as text.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  for (const module of data.modules) {
    module.own = Selectors.expand(module.own);
    module.within = Selectors.expand(module.within);
  }
  const byId = (id) => document.getElementById(id);
  const count = (number) => Math.round(number).toLocaleString("en-US");
  const STATES = { trains: "trains", frozen: "❄ frozen", part: "in part", none: "–" };

  let trainable = new Set();
  let said = null; // the last selector that was typed: its mode, text and set
  let problem = ""; // with the selector; while there is one, there is no command
  let samples = data.samples;
  let width = "parameters";

  // ---- words

  const WORDS = { parameters: count, time: seconds, saved: bytes };

  function bytes(number) {
    let size = number;
    for (const unit of ["B", "KB", "MB", "GB"]) {
      if (size < 999.5) return unit === "B" ? `${Math.round(size)} B` : `${digits(size)} ${unit}`;
      size /= 1000;
    }
    return `${digits(size)} TB`;
  }

  function seconds(number) {
    if (number < 0.9995) return `${digits(number * 1000)} ms`;
    if (number < 59.95) return `${digits(number)} s`;
    const whole = Math.round(number);
    const [minutes, rest] = [Math.floor(whole / 60), whole % 60];
    if (minutes < 60) return `${minutes} min ${String(rest).padStart(2, "0")} s`;
    return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  }

  function digits(number) {
    return number === 0 ? "0" : String(Number(number.toPrecision(3)));
  }

  function shellWord(text) {
    return /^[A-Za-z0-9_./:=@%+,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\"'\"'")}'`;
  }

  function element(tag, attributes = {}, ...inside) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...inside);
    return made;
  }

  // Signs that turn the writing or cannot be seen are spelt out.
  function shown(text) {
    return text.replace(/[\p{Cc}\p{Cf}\p{Cs}]/gu,
      (sign) => `\\u${sign.codePointAt(0).toString(16).padStart(4, "0")}`);
  }

  // ---- the model as rows: a layer each, by stage, in the order in which they run

  function rowsOf() {
    const order = new Set(data.ledger.turns.map((turn) => turn.layer));
    data.modules.forEach((module, at) => module.own.length && order.add(at));
    return [...order].map((at) => ({ ...data.modules[at], at, path: data.ledger.paths[at] }));
  }

  function stageOf(path) {
    return data.stages.findIndex((group) =>
      group.some((one) => one === path || path.startsWith(`${one}.`)));
  }

  function draw() {
    const groups = [];
    for (const row of rowsOf()) {
      const found = row.own.length ? data.entries[row.own[0]].stage : stageOf(row.path);
      const last = groups.at(-1);
      const stage = found < 0 ? (last?.stage ?? 0) : found;
      if (last?.stage === stage) last.rows.push(row);
      else groups.push({ stage, rows: [row] });
    }
    for (const group of groups) byId("model").append(drawStage(group));
    const first = byId("model").querySelector("input");
    if (first) first.tabIndex = 0;
    return groups;
  }

  function drawStage(group) {
    group.section = element("section", { class: "stage", "aria-label": `stage ${group.stage}` });
    const name = (data.stages[group.stage] ?? []).map(shown).join(", ");
    group.entries = group.rows.flatMap((row) => row.own);
    const head = element("header");
    if (group.rows.filter((row) => row.own.length).length > 1) {
      group.box = box(group.entries, `all of stage ${group.stage}`);
      head.append(element("label", {}, group.box, ` stage:${group.stage} `));
    } else head.append(`stage:${group.stage} `);
    group.value = element("span", { class: "value" });
    head.append(element("span", { class: "quiet" }, name));
    if (group.rows.length > 1) {
      const fold = element("button", { type: "button", "aria-expanded": "true" }, "fold");
      fold.addEventListener("click", () => {
        const open = fold.getAttribute("aria-expanded") === "false";
        fold.setAttribute("aria-expanded", String(open));
        fold.textContent = open ? "fold" : `unfold ${group.rows.length} layers`;
        for (const row of group.rows) row.element.hidden = !open;
      });
      head.append(fold, group.value);
    }
    group.section.append(head, ...group.rows.map(drawRow));
    return group.section;
  }

  function drawRow(row) {
    row.state = element("span", { class: "state" });
    row.bar = element("span", { class: "bar" });
    row.value = element("span", { class: "value" });
    const path = element("span", { class: "path" }, shown(row.path) || "(model)", " ",
      element("small", {}, shown(row.type)));
    if (row.own.length) row.box = box(row.own, row.path || "the model's own parameters");
    row.element = element(row.box ? "label" : "div", { class: "layer" },
      row.box ?? element("span"), path, row.state, row.bar, row.value);
    row.element.dataset.path = row.path;
    return row.element;
  }

  function box(entries, name) {
    const made = element("input", { type: "checkbox", tabindex: "-1", "aria-label": `train ${shown(name)}` });
    made.addEventListener("change", () => {
      for (const index of entries) made.checked ? trainable.add(index) : trainable.delete(index);
      const before = made.getBoundingClientRect().top;
      sayInWords();
      update();
      // Words and the frost line move rows; what was clicked stays under the pointer.
      scrollBy({ top: made.getBoundingClientRect().top - before, behavior: "instant" });
    });
    return made;
  }

  // ---- what is asked, in words and back

  function sayInWords() {
    const freezes = byId("mode").value === "freeze";
    const named = freezes ? Selectors.complement(data, trainable) : trainable;
    byId("selector").value = said?.mode === byId("mode").value
      ? Selectors.changedText(data, said.text, said.picked, named)
      : Selectors.textOf(data, named);
    wrong("");
  }

  function readWords() {
    const text = byId("selector").value;
    const options = Selectors.suggestions(data, text, 20).map((value) => element("option", { value }));
    byId("terms").replaceChildren(...options);
    try {
      const picked = Selectors.parse(data, text);
      trainable = byId("mode").value === "freeze" ? Selectors.complement(data, picked) : new Set(picked);
      said = { mode: byId("mode").value, text: text.trim(), picked };
      wrong("");
      update();
    } catch (error) {
      if (!(error instanceof Selectors.Unknown)) throw error;
      const run = commandOf(["inspect", data.name], ["--html", "FILE"]);
      wrong(`${error.message}. To see what it selects, or what is wrong with it, run:\n${run}`);
    }
  }

  function commandOf(verb, more = []) {
    const asked = [`--${byId("mode").value}`, byId("selector").value];
    return ["frostline", ...verb, ...data.options, ...asked, ...more].map(shellWord).join(" ");
  }

  function wrong(message) {
    problem = message;
    if (message) byId("command").value = "";
    byId("wrong").textContent = message;
    byId("wrong").hidden = !message;
    byId("selector").setAttribute("aria-invalid", String(Boolean(message)));
    byId("command").disabled = Boolean(message);
    byId("copy").disabled = Boolean(message);
  }

  // ---- figures

  function update() {
    const found = Ledger.evaluate(data, trainable, samples);
    if (!found.trains && !problem) wrong("nothing would train: leave something to train.");
    if (!problem) byId("command").value = commandOf(["train", "DATA", "--model", data.name]);
    figures(found);
    const sizes = groups.flatMap((group) => group.rows).map((row) => measure(row, found));
    const most = Math.max(...sizes, Number.MIN_VALUE);
    for (const group of groups) {
      for (const row of group.rows) show(row, found, most);
      group.value.textContent = WORDS[width](group.rows.reduce((sum, row) => sum + measure(row, found), 0));
      if (group.box) tick(group.box, group.entries);
    }
    drawLine(found);
  }

  function figures(found) {
    const { plain, features, once } = found;
    const disk = found.crossing.reduce((sum, one) => sum + one.nbytes, 0);
    const list = [
      ["trains", found.trains, count(found.trains),
        `of ${count(found.parameters)} parameters, ${digits((100 * found.trains) / found.parameters)} %`],
      ["memory", found.memory, bytes(found.memory),
        `weights ${bytes(found.weights)}, gradients ${bytes(found.gradients)}, ` +
        `${data.ledger.optimizer} ${bytes(found.state)}, activations ${bytes(found.saved)}`],
      ["epoch, plain loop", plain, seconds(plain), `${seconds(found.step)} a step`],
      ["epoch on stored features", features, seconds(features),
        once > 0 ? `and ${seconds(once)} once; ${bytes(disk * samples)} on disk` : "nothing to store"],
      ["delta", found.delta, bytes(found.delta), "what a checkpoint holds"],
    ];
    byId("figures").replaceChildren(...list.map(([name, number, text, more]) => {
      const value = element("dd", {}, text, element("small", {}, more));
      const made = element("div", {}, element("dt", {}, name), value);
      made.dataset.figure = name;
      made.dataset.value = number;
      return made;
    }));
    byId("figures").dataset.saved = found.saved;
    byId("figures").dataset.disk = disk;
  }

  function measure(row, found) {
    const layer = found.layers[row.at];
    if (width === "time") return layer.forward + layer.backward;
    if (width === "saved") return layer.saved;
    return row.own.reduce((sum, index) =>
      sum + (data.entries[index].parameter < 0 ? 0 : data.entries[index].numel), 0);
  }

  function show(row, found, most) {
    const number = measure(row, found);
    const layer = found.layers[row.at];
    const state = stateOf(row.own);
    row.element.className = `layer ${state}`;
    const crossed = state === "frozen" && layer.crossed ? ", crossed" : "";
    row.state.textContent = STATES[state] + crossed;
    row.state.title = crossed ? "the backward pass goes through it to what trains below" : "";
    row.bar.style.width = `${Math.max(0, (100 * number) / most)}%`;
    row.bar.style.visibility = number ? "visible" : "hidden";
    row.value.hidden = row.bar.hidden = !number && matchMedia("(max-width: 640px)").matches;
    row.value.textContent = number ? WORDS[width](number) : "";
    if (row.box) tick(row.box, row.own);
  }

  function stateOf(own) {
    if (!own.length) return "none";
    const on = own.filter((index) => trainable.has(index)).length;
    if (!on) return "frozen";
    return on === own.length ? "trains" : "part";
  }

  function tick(made, entries) {
    const on = entries.filter((index) => trainable.has(index)).length;
    made.checked = on > 0 && on === entries.length;
    made.indeterminate = on > 0 && on < entries.length;
  }

  // ---- the frost line, where it runs in the order of layers

  const line = element("div", { class: "line", id: "line" }, element("span"));

  function drawLine(found) {
    const rows = groups.flatMap((group) => group.rows).filter((row) => found.layers[row.at].runs);
    const at = rows.findIndex((row) => !found.layers[row.at].below);
    const later = rows.slice(Math.max(at, 0)).filter((row) => found.layers[row.at].below).length;
    const crosses = found.crossing.slice(0, 3).map((one) =>
      `${shown(one.name)}${one.shape.length ? ` ${one.shape.join("×")}` : ""} (${bytes(one.nbytes)} a sample)`);
    if (found.crossing.length > 3) crosses.push(`${found.crossing.length - 3} more`);
    const beside = later ? ` ${later} of the layers below also lie under it.` : "";
    line.firstChild.textContent = at === 0
      ? "frost line: nothing lies under it, every step computes it all"
      : `frost line: ${at < 0 ? "nothing" : crosses.join(", ")} crosses.${beside}`;
    if (at < 0) byId("model").append(line);
    else rows[at].element.before(line);
  }

  // ---- events

  byId("selector").addEventListener("input", readWords);
  byId("ask").addEventListener("submit", (event) => event.preventDefault());
  byId("mode").addEventListener("change", () => { sayInWords(); update(); });
  byId("samples").addEventListener("input", (event) => {
    const asked = Number(event.target.value);
    if (asked >= 1) { samples = asked; update(); }
  });
  for (const radio of document.getElementsByName("width"))
    radio.addEventListener("change", () => { width = radio.value; update(); });
  byId("copy").addEventListener("click", () => {
    byId("command").select();
    document.execCommand("copy");
    byId("copy").textContent = "Copied";
    setTimeout(() => { byId("copy").textContent = "Copy"; }, 1500);
  });
  // One stop of the tab key for the whole model; arrows go on from there.
  byId("model").addEventListener("keydown", (event) => {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 };
    if (!(event.key in steps) || event.target.type !== "checkbox") return;
    const boxes = [...byId("model").querySelectorAll("input")].filter((one) => !one.closest("[hidden]"));
    const next = boxes.indexOf(event.target) + steps[event.key];
    boxes[Math.max(0, Math.min(boxes.length - 1, next))].focus();
    event.preventDefault();
  });
  byId("model").addEventListener("focusin", (event) => {
    for (const one of byId("model").querySelectorAll("input[tabindex='0']")) one.tabIndex = -1;
    if (event.target.type === "checkbox") event.target.tabIndex = 0;
  });

  function presets() {
    const known = [["the head", "stage:-1"], ["the last two stages", "stage:-2..-1"], ["everything", "all"]];
    for (const [kind, name] of [["norm", "norms"], ["bias", "biases"]])
      if (Selectors.known(data).has(`kind:${kind}`))
        known.push([`${name} and the head`, `kind:${kind} | stage:-1`]);
    for (const [name, text] of known) {
      const made = element("button", { type: "button" }, name);
      made.addEventListener("click", () => {
        byId("mode").value = "train";
        byId("selector").value = text;
        readWords();
      });
      byId("presets").append(made);
    }
  }

  const groups = draw();
  presets();
  byId("samples").value = samples;
  byId("mode").value = data.mode;
  byId("selector").value = data.selector;
  byId("basis").textContent =
    `Batches of ${data.ledger.batch_size} in float32. Seconds are those of single operations on the ` +
    "machine that made this page, without decoding and validation; memory is what is held when the " +
    "backward pass begins, and gradients and optimizer state.";
  byId("busy").textContent = data.busy;
  byId("busy").hidden = !data.busy;
  readWords();
})();
