"use strict";
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const panels = [...document.querySelectorAll(".panel")];
  const choices = [...document.querySelectorAll("[data-panel]")];
  const filter = document.getElementById("filter");
  const dialog = document.getElementById("large");
  const frame = document.getElementById("large-picture");
  const holder = document.getElementById("large-image");
  const image = new Image();
  const framesButton = document.getElementById("frames");
  let current = null;

  // One panel at a time; without this script all of them are on the page.
  function choose(id) {
    for (const panel of panels) panel.hidden = panel.id !== id;
    for (const button of choices) button.setAttribute("aria-pressed", String(button.dataset.panel === id));
    count();
  }

  // "3, 7:10, cat": numbers, ranges without their end, parts of labels.
  function matcher(text) {
    const tests = text.toLowerCase().split(",").map(part => part.trim()).filter(Boolean).map(part => {
      const range = part.match(/^(\d+)\s*:\s*(\d+)$/);
      if (range) return unit => unit >= Number(range[1]) && unit < Number(range[2]);
      if (/^\d+$/.test(part)) return unit => unit === Number(part);
      return (unit, label) => label.includes(part);
    });
    return (unit, label) => !tests.length || tests.some(test => test(unit, label));
  }

  function narrow() {
    const matches = matcher(filter.value);
    for (const panel of panels) {
      const heads = [...panel.querySelectorAll(".head")];
      const shown = heads.map(head => matches(Number(head.dataset.unit), head.dataset.label.toLowerCase()));
      heads.forEach((head, i) => { head.hidden = !shown[i]; });
      for (const line of panel.querySelectorAll(".line")) {
        line.querySelectorAll(".cell").forEach((cell, i) => { cell.hidden = !shown[i]; });
      }
      const left = shown.filter(Boolean).length;
      panel.style.setProperty("--columns", Math.max(1, left));
      panel.querySelector(".scroll").hidden = left === 0;
      panel.querySelector(".none").hidden = left > 0;
    }
    count();
  }

  function count() {
    const heads = [...document.querySelectorAll(".panel:not([hidden]) .head")];
    const left = heads.filter(head => !head.hidden).length;
    document.getElementById("matches").textContent = left === heads.length ? "" : `${left} of ${heads.length} units`;
  }

  // The tiles (or the exemplars) of the shown panel as rows; a missing cell is an empty entry.
  function grid(kind) {
    const lines = document.querySelectorAll(".panel:not([hidden]) .line:not(.heads)");
    return [...lines].map(line => [...line.querySelectorAll(".cell:not([hidden])")].map(cell => [...cell.querySelectorAll(kind)]));
  }

  function neighbour(tile, direction) {
    const rows = grid(tile.matches(".exemplar") ? ".exemplar" : ".tile");
    for (let r = 0; r < rows.length; r++) for (let c = 0; c < rows[r].length; c++) {
      const s = rows[r][c].indexOf(tile);
      if (s < 0) continue;
      if (direction === "left" || direction === "right") {
        const along = rows[r].flat();
        return along[along.indexOf(tile) + (direction === "left" ? -1 : 1)] || null;
      }
      const step = direction === "up" ? -1 : 1;
      for (let other = r + step; other >= 0 && other < rows.length; other += step) {
        const cell = rows[other][c];
        if (cell.length) return cell[Math.min(s, cell.length - 1)];
      }
      return null;
    }
    return null;
  }

  function sparkline(points) {
    const place = document.getElementById("spark");
    place.replaceChildren();
    if (points.length < 2) return;
    const width = 300, height = 60, scores = points.map(point => point[1]);
    const low = Math.min(...scores), high = Math.max(...scores), last = points[points.length - 1];
    const x = step => width * (step - points[0][0]) / (last[0] - points[0][0] || 1);
    const y = score => height - height * (score - low) / (high - low || 1);
    const name = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(name, "svg");
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `score over ${last[0]} steps, from ${scores[0]} to ${last[1]}`);
    const path = document.createElementNS(name, "polyline");
    path.setAttribute("points", points.map(([step, score]) => `${x(step).toFixed(1)},${y(score).toFixed(1)}`).join(" "));
    path.setAttribute("fill", "none");
    path.setAttribute("stroke", "currentColor");
    path.setAttribute("stroke-width", "2");
    path.setAttribute("vector-effect", "non-scaling-stroke");
    svg.append(path);
    const caption = document.createElement("figcaption");
    caption.textContent = `score over ${last[0]} steps: ${scores[0].toPrecision(3)} to ${last[1].toPrecision(3)}`;
    place.append(svg, caption);
  }

  // Whole multiples keep the pixels square.
  function fit() {
    const room = frame.clientWidth, tall = window.innerHeight - 120;
    const side = Math.min(room / image.naturalWidth, tall / image.naturalHeight);
    image.style.width = `${image.naturalWidth * (side >= 1 ? Math.floor(side) : side)}px`;
  }

  function show(tile) {
    current = tile;
    const { title, pairs, trajectory, frames } = facts[Number(tile.dataset.facts)];
    const small = tile.querySelector("img");
    document.getElementById("large-title").textContent = title;
    document.getElementById("large-dead").hidden = Boolean(small);
    holder.replaceChildren();
    if (small) {
      const mark = tile.querySelector(".mark");
      image.src = small.src;
      image.alt = title;
      holder.append(image, ...(mark ? [mark.cloneNode()] : []));
    }
    const list = document.getElementById("large-facts");
    list.replaceChildren(...pairs.flatMap(([key, value]) => {
      const dt = document.createElement("dt"), dd = document.createElement("dd");
      dt.textContent = key;
      dd.textContent = value;
      return [dt, dd];
    }));
    sparkline(trajectory);
    framesButton.hidden = !frames;
    framesButton.setAttribute("aria-pressed", "false");
    for (const button of dialog.querySelectorAll("[data-move]")) button.disabled = !neighbour(tile, button.dataset.move);
    if (!dialog.open) dialog.showModal();
    if (small) image.decode().then(fit, () => {});
  }

  // Switch between the picture and the GIF of its optimization.
  function showFrames() {
    const playing = framesButton.getAttribute("aria-pressed") === "true";
    image.src = playing ? current.querySelector("img").src : facts[Number(current.dataset.facts)].frames;
    framesButton.setAttribute("aria-pressed", String(!playing));
  }

  function move(direction) {
    const next = current && neighbour(current, direction);
    if (!next) return;
    if (dialog.open) show(next);
    else { current = next; next.focus(); }
  }

  document.addEventListener("click", event => {
    const tile = event.target.closest(".tile, .exemplar");
    if (tile) show(tile);
    const button = event.target.closest("[data-move]");
    if (button) move(button.dataset.move);
    if (event.target === framesButton) showFrames();
    if (event.target === dialog || event.target.id === "close") dialog.close();
  });
  document.addEventListener("keydown", event => {
    const arrow = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" }[event.key];
    const tile = document.activeElement.closest(".tile, .exemplar");
    if (!arrow || event.altKey || event.ctrlKey || event.metaKey || (!dialog.open && !tile)) return;
    if (!dialog.open) current = tile;
    event.preventDefault();
    move(arrow);
  });
  dialog.addEventListener("close", () => current && current.focus());
  window.addEventListener("resize", () => dialog.open && image.isConnected && fit());
  for (const button of choices) button.addEventListener("click", () => choose(button.dataset.panel));
  filter.addEventListener("input", narrow);
  if (panels.length) choose(panels[0].id);
})();
