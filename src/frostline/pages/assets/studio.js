"use strict";
// What changes while something runs is asked for again; pictures are sent as they are dropped.
const live = document.getElementById("live");
async function look() {
  let text = "";
  try {
    const answer = await fetch(live.dataset.from);
    text = await answer.text();
  } catch (error) {
    document.getElementById("gone").hidden = false; // the studio was ended, or goes on in a moment
    setTimeout(look, 3000);
    return;
  }
  document.getElementById("gone").hidden = true;
  const scrolled = live.querySelector("pre.output");
  const open = live.querySelector("details")?.open;
  const atEnd = !scrolled || scrolled.scrollTop + scrolled.clientHeight > scrolled.scrollHeight - 30;
  const before = scrolled?.scrollTop;
  live.innerHTML = text; // made by the studio, in which all names are escaped
  if (open) live.querySelector("details").open = true;
  const output = live.querySelector("pre.output");
  if (output) output.scrollTop = atEnd ? output.scrollHeight : before;
  if (live.querySelector("[data-ended]")) location.reload();
  else setTimeout(look, 1000);
}
if (live && !live.querySelector("[data-ended]")) setTimeout(look, 500);

const drop = document.getElementById("drop");
async function ask(file) {
  const place = document.createElement("div");
  place.textContent = `${file.name}: looking ...`;
  document.getElementById("answers").prepend(place);
  const query = new URLSearchParams({ name: drop.dataset.run, file: file.name });
  try {
    const answer = await fetch(`/predict?${query}`, { method: "POST", body: file });
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
  for (const name of ["dragenter", "dragover", "dragleave", "drop"])
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragenter" || name === "dragover");
      if (name === "drop") askAll([...event.dataTransfer.files]);
    });
}
