"use strict";
(() => {
  const { token, images, trials } = JSON.parse(document.getElementById("content").textContent);
  const place = `vizrobust-trials-${token}`;
  const known = new Set(trials.map(trial => trial.id));
  const part = id => document.getElementById(id);
  const queries = [...document.querySelectorAll(".query")], sure = [...document.querySelectorAll("[data-sure]")];
  const layouts = { 1: "one", 2: "four", 4: "four" };  // how many pictures a side has: 1, 2 or otherwise 3 in a line
  const titles = { true: "These excite it", false: "These do not" };
  let answers = remembered();
  let choice = null, shownAt = 0;

  // Storage may be switched off, or hold what another program wrote.
  function remembered() {
    try {
      const kept = JSON.parse(localStorage.getItem(place) || "[]");
      return Array.isArray(kept) && kept.every((answer, k) => answer && known.has(answer.trial) && answer.trial === trials[k].id) ? kept : [];
    } catch {
      return [];
    }
  }

  function keep() {
    try {
      localStorage.setItem(place, JSON.stringify(answers));
      return true;
    } catch {
      return false;
    }
  }

  function only(id) {
    for (const name of ["intro", "trial", "done"]) part(name).hidden = name !== id;
  }

  function picture(index) {
    const image = new Image();
    image.src = images[index];
    image.alt = "";
    return image;
  }

  function next() {
    const trial = trials[answers.length];
    if (!trial) {
      only("done");
      part("save").focus();
      return;
    }
    only("trial");
    for (const side of ["left", "right"]) {
      const own = trial.unit === side, box = part(side), pictures = box.querySelector(".pictures");
      box.classList.toggle("own", own);
      part(`${side}-title`).textContent = titles[own];
      pictures.className = `pictures ${layouts[trial[side].length] || ""}`;
      pictures.replaceChildren(...trial[side].map(picture));
    }
    queries.forEach((button, k) => { button.querySelector("img").src = images[trial.queries[k]]; });
    part("number").textContent = `${answers.length + 1} of ${trials.length}`;
    part("bar").value = answers.length;
    choose(null);
    part("said").textContent = `Question ${answers.length + 1} of ${trials.length}. The pictures of the unit are on the ${trial.unit}.`;
    document.activeElement.blur();
    window.scrollTo(0, 0);
    shownAt = performance.now();
  }

  function choose(side) {
    choice = side;
    for (const button of queries) button.setAttribute("aria-pressed", String(button.dataset.side === side));
    for (const button of sure) button.disabled = !side;
    if (side) part("said").textContent = `${side} image chosen. How sure are you: 1, 2 or 3?`;
  }

  function answer(confidence) {
    if (!choice) return;
    const seconds = Math.round((performance.now() - shownAt) / 10) / 100;
    answers.push({ trial: trials[answers.length].id, choice, confidence, seconds });
    keep();
    next();
  }

  function save() {
    const content = JSON.stringify({ format: 1, trials: token, answers }, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type: "application/json" }));
    link.download = `answers-${token}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    part("again").disabled = false;
  }

  function forget() {
    answers = [];
    keep();
    part("again").disabled = true;
    begin();
  }

  function begin() {
    if (answers.length) { next(); return; }
    only("intro");
    part("memory").hidden = keep();
    part("start").focus();
  }

  for (const button of queries) button.addEventListener("click", () => choose(button.dataset.side));
  for (const button of sure) button.addEventListener("click", () => answer(Number(button.dataset.sure)));
  part("start").addEventListener("click", next);
  part("save").addEventListener("click", save);
  part("again").addEventListener("click", forget);
  document.addEventListener("keydown", event => {
    if (part("trial").hidden || event.repeat || event.altKey || event.ctrlKey || event.metaKey) return;
    const side = { ArrowLeft: "left", ArrowRight: "right" }[event.key];
    if (side) choose(side);
    else if (["1", "2", "3"].includes(event.key)) answer(Number(event.key));
    else return;
    event.preventDefault();
  });
  begin();
})();
