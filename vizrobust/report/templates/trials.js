"use strict";
(() => {
  const { token, images, practice, trials } = JSON.parse(document.getElementById("content").textContent);
  const place = `vizrobust-trials-${token}`;
  const known = new Set(trials.map(trial => trial.id));
  const part = id => document.getElementById(id);
  const queries = [...document.querySelectorAll(".query")], sure = [...document.querySelectorAll("[data-sure]")];
  const titles = { true: "These excite it", false: "These do not" };
  let answers = remembered();
  let shown = null, choice = null, shownAt = 0;

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
    if (answers.length < trials.length) ask(trials[answers.length]);
    else {
      only("done");
      part("save").focus();
    }
  }

  function ask(trial) {
    shown = trial;
    only("trial");
    for (const side of ["left", "right"]) {
      const own = trial.unit === side, box = part(side);
      box.classList.toggle("own", own);
      part(`${side}-title`).textContent = titles[own];
      box.querySelector(".pictures").replaceChildren(...trial[side].map(picture));
    }
    queries.forEach((button, k) => {
      button.querySelector("img").src = images[trial.queries[k]];
      button.classList.remove("right");
      button.disabled = false;
    });
    const told = trial === practice ? "Practice" : `${answers.length + 1} of ${trials.length}`;
    part("number").textContent = told;
    part("bar").value = answers.length;
    part("feedback").hidden = true;
    document.querySelector(".sure").hidden = false;
    choose(null);
    part("said").textContent = `${trial === practice ? "A practice question" : `Question ${told}`}. The pictures of the unit are ${trial.unit === "left" ? "first" : "second"}.`;
    document.activeElement.blur();
    window.scrollTo(0, 0);
    fit();
    Promise.all([...part("trial").querySelectorAll("img")].map(image => image.decode())).then(fit, fit);
    shownAt = performance.now();
  }

  // As large as the box allows; small pictures at whole multiples of the screen's pixels, so that theirs stay square.
  function width(image, room) {
    const step = image.naturalWidth / window.devicePixelRatio;
    return document.body.classList.contains("crisp") && step > 0 && room >= step ? Math.floor(room / step) * step : Math.max(0, room);
  }

  function fit() {
    for (const box of document.querySelectorAll(".pictures")) {
      const count = box.children.length, first = box.firstElementChild, gap = 4;
      if (!first || !first.naturalWidth) continue;
      const ratio = first.naturalWidth / first.naturalHeight;
      let best = 0, across = 1;
      for (let columns = 1; columns <= count; columns++) {
        const rows = Math.ceil(count / columns);
        const room = Math.min((box.clientWidth - gap * (columns - 1)) / columns, ratio * (box.clientHeight - gap * (rows - 1)) / rows);
        if (room > best) [best, across] = [room, columns];
      }
      box.style.gridTemplateColumns = `repeat(${across}, ${width(first, best)}px)`;
    }
    const group = document.querySelector(".queries"), gap = parseFloat(getComputedStyle(group).columnGap) || 0;
    for (const button of queries) {
      const image = button.querySelector("img"), hint = button.querySelector(".hint"), around = 16;
      if (!image.naturalWidth) continue;
      const tall = group.clientHeight - around - (hint.offsetHeight ? hint.offsetHeight + 5 : 0);
      image.style.width = `${width(image, Math.min((group.clientWidth - gap) / 2 - around, tall * image.naturalWidth / image.naturalHeight))}px`;
    }
  }

  function choose(side) {
    choice = side;
    for (const button of queries) button.setAttribute("aria-pressed", String(button.dataset.side === side));
    for (const button of sure) button.disabled = !side;
    part("how-sure").textContent = side ? "How sure are you?" : "Choose one of the two images.";
    if (side) part("said").textContent = `${side} image chosen. How sure are you: 1, 2 or 3?`;
  }

  function answer(confidence) {
    if (!choice) return;
    if (shown === practice) { tell(); return; }
    const seconds = Math.round((performance.now() - shownAt) / 10) / 100;
    answers.push({ trial: shown.id, choice, confidence, seconds });
    keep();
    next();
  }

  function tell() {
    const right = queries.find(button => button.dataset.side === practice.belongs);
    right.classList.add("right");
    for (const button of queries) button.disabled = true;
    document.querySelector(".sure").hidden = true;
    part("told").textContent = `${choice === practice.belongs ? "Right" : "Not this one"}: the ${practice.belongs} image excites the unit. `
      + "Here the pictures were images from the data set; most others are made by a computer and look stranger.";
    part("feedback").hidden = false;
    fit();
    part("begin").focus();
  }

  function save() {
    const content = JSON.stringify({ format: 1, trials: token, answers }, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type: "application/json" }));
    link.download = `answers-${token}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    part("again").disabled = false;
    part("kept").hidden = false;
  }

  function forget() {
    answers = [];
    keep();
    part("again").disabled = part("kept").hidden = true;
    begin();
  }

  function begin() {
    if (answers.length) { next(); return; }
    only("intro");
    part("memory").hidden = keep();
    part(practice ? "try" : "start").focus();
  }

  for (const button of queries) button.addEventListener("click", () => choose(button.dataset.side));
  for (const button of sure) button.addEventListener("click", () => answer(Number(button.dataset.sure)));
  if (practice) part("try").addEventListener("click", () => ask(practice));
  for (const id of ["start", "begin"]) part(id).addEventListener("click", next);
  part("save").addEventListener("click", save);
  part("again").addEventListener("click", forget);
  window.addEventListener("resize", fit);
  document.addEventListener("keydown", event => {
    if (part("trial").hidden || !part("feedback").hidden || event.repeat || event.altKey || event.ctrlKey || event.metaKey) return;
    const side = { ArrowLeft: "left", ArrowRight: "right" }[event.key];
    if (side) choose(side);
    else if (["1", "2", "3"].includes(event.key)) answer(Number(event.key));
    else return;
    event.preventDefault();
  });
  begin();
})();
