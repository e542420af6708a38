"use strict";
// What changes while something runs is asked for again; pictures are sent as they are dropped.
const live = document.getElementById("live");
const gone = document.getElementById("gone");
let shown = "";

// Put the studio's new words in; what is open, focused and scrolled stays so.
function change(text) {
  if (text === shown || (live.contains(getSelection().anchorNode) && String(getSelection()))) return;
  shown = text;
  const marked = () => [...live.querySelectorAll("a, button, summary, pre")];
  const focused = marked().indexOf(document.activeElement);
  const open = new Map([...live.querySelectorAll("details")].map((one) => [one.id, one.open]));
  const before = live.querySelector("pre.output");
  const atEnd = !before || before.scrollTop + before.clientHeight > before.scrollHeight - 30;
  const place = before?.scrollTop;
  live.innerHTML = text; // made by the studio, in which all names are escaped
  for (const one of live.querySelectorAll("details"))
    if (open.has(one.id) && !one.querySelector("[data-failed]")) one.open = open.get(one.id);
  const output = live.querySelector("pre.output");
  if (output) output.scrollTop = atEnd ? output.scrollHeight : place;
  if (focused >= 0) marked()[focused]?.focus({ preventScroll: true });
  settle();
}

// What stands outside of the part that changes, and hangs on it.
function settle() {
  const words = live.querySelector("[data-status]")?.dataset.status ?? "";
  const status = document.getElementById("status");
  if (status.textContent !== words) status.textContent = words;
  const ended = live.querySelector("[data-ended]") !== null;
  if (ended && document.getElementById("busy")) document.getElementById("busy").hidden = true;
  const tried = document.getElementById("try");
  if (tried) tried.hidden = !live.querySelector("[data-best]");
  return ended;
}

async function look() {
  try {
    const answer = await fetch(live.dataset.from);
    const text = await answer.text();
    if (!answer.ok) return location.reload(); // the page itself says what is wrong
    change(text);
    gone.hidden = true;
  } catch (error) {
    gone.hidden = false; // the studio was ended, or answers in a moment
  }
  if (!settle()) setTimeout(look, gone.hidden ? 1000 : 3000);
}

if (live) {
  const output = live.querySelector("pre.output");
  if (output) output.scrollTop = output.scrollHeight;
  if (!settle()) setTimeout(look, 500);
}

const drop = document.getElementById("drop");

async function ask(file) {
  const place = document.createElement("div");
  place.textContent = `${file.name}: looking ...`;
  document.getElementById("answers").prepend(place);
  const query = new URLSearchParams({ name: drop.dataset.run, file: file.name });
  try {
    const answer = await fetch(`predict?${query}`, { method: "POST", body: file });
    const text = await answer.text();
    if (answer.ok) place.innerHTML = text; // as above
    else place.textContent = `${file.name}: ${text}`;
  } catch (error) {
    place.textContent = `${file.name}: the studio does not answer. Is it still running?`;
  }
}

async function askAll(files) {
  for (const file of files) await ask(file);
}

if (drop) {
  drop.querySelector("input").addEventListener("change", (event) => askAll([...event.target.files]));
  // Anywhere on the page: a browser goes to a picture that is dropped beside the box.
  for (const name of ["dragover", "dragleave", "drop"])
    addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop" && !document.getElementById("try").hidden) askAll([...event.dataTransfer.files]);
    });
}

document.getElementById("other")?.addEventListener("input", (event) => {
  if (event.target.value) document.querySelector("input[name=network][value='']").checked = true;
});
