"use strict";
// Units in cards: which are shown, in which order, one of them enlarged. All of it is in the address after #.
(() => {
  const at = id => document.getElementById(id);
  const facts = JSON.parse(at("facts").textContent);
  const panels = [...document.querySelectorAll(".panel")];
  const choices = [...document.querySelectorAll("[data-panel]")];
  const dialog = at("large"), holder = at("large-image"), slider = at("slider"), framesButton = at("frames"), image = new Image();
  const pictures = "button.tile, .exemplar";  // other tiles are links
  // Control -> its name in the address.
  const controls = Object.entries({
    filter: "units", size: "size", sort: "sort", measure: "of", "group-a": "a", "group-b": "b",
    "seed-training": "training", "seed-image": "seed", status: "status",
  }).map(([id, name]) => [at(id), name]).filter(([control]) => control);
  let current = null;

  document.documentElement.classList.add("js");
  if (!panels.length) return;

  const units = panel => [...panel.querySelectorAll(".unit")];
  const cells = unit => [...unit.querySelectorAll(".cell[data-group]")];
  const shownTiles = cell => [...cell.querySelectorAll(".tile:not([hidden])")];
  const factsOf = tile => facts[Number(tile.dataset.facts)];
  const shownPanel = () => panels.find(panel => !panel.hidden);
  const cellOf = tile => tile.closest(".cell");
  const unitOf = tile => tile.closest(".unit");

  // A starts at the largest K, B at the smallest: the difference that the pages are about.
  const groups = [...new Set([...document.querySelectorAll(".cell[data-group]")].map(cell => cell.dataset.group))];
  const swept = [...new Set([...document.querySelectorAll(".cell[data-k]")].map(cell => cell.dataset.group))];
  const ends = swept.length ? swept : groups;
  if (at("group-a") && ends.length) { at("group-a").value = ends[ends.length - 1]; at("group-b").value = ends[0]; }
  const defaults = new Map(controls.map(([control, name]) => [name, control.value]));

  // The address.
  function write(push) {
    const state = new URLSearchParams();
    const panel = shownPanel();
    if (panel && panel !== panels[0]) state.set("panel", panel.id);
    for (const [control, name] of controls) if (control.value !== defaults.get(name)) state.set(name, control.value);
    if (dialog && dialog.open && current) state.set("open", factsOf(current).key);
    const text = `#${state}`;
    if (text === (location.hash || "#")) return;
    if (push) history.pushState({ own: true }, "", text);
    else history.replaceState(history.state, "", text);
  }

  function read() {
    if (/^#[\w-]+$/.test(location.hash)) return;  // a place on the page
    const state = new URLSearchParams(location.hash.slice(1));
    for (const [control, name] of controls) {
      control.value = state.has(name) ? state.get(name) : defaults.get(name);
      if (control.tagName === "SELECT" && control.selectedIndex < 0) control.value = defaults.get(name);
    }
    const panel = panels.find(one => one.id === state.get("panel")) || panels[0];
    for (const one of panels) one.hidden = one !== panel;
    update();
    const key = state.get("open");
    const tile = key && [...document.querySelectorAll(pictures)].find(one => factsOf(one).key === key);
    if (tile) show(tile, "keep");
    else if (dialog && dialog.open) dialog.close();
  }

  function update() {
    const panel = shownPanel();
    for (const button of choices) button.setAttribute("aria-pressed", String(button.dataset.panel === panel.id));
    for (const one of panels) {
      const tile = Number(one.dataset.tile), step = Number(one.dataset.side) || tile;
      one.style.setProperty("--tile", `${tile + step * Number(at("size").value) * Math.max(1, Math.round(48 / step))}px`);
    }
    narrow();
    pick();
    arrange();
  }

  // "3, 7:10, cat": numbers, ranges without their end, parts of names.
  function matcher(text) {
    const tests = text.toLowerCase().split(",").map(part => part.trim()).filter(Boolean).map(part => {
      const range = part.match(/^(\d+)\s*:\s*(\d+)$/);
      if (range) return unit => unit >= Number(range[1]) && unit < Number(range[2]);
      if (/^\d+$/.test(part)) return unit => unit === Number(part);
      return (unit, label) => label.includes(part);
    });
    return ({ unit, label }) => !tests.length || tests.some(test => test(Number(unit), label.toLowerCase()));
  }

  function narrow() {
    const matches = matcher(at("filter").value), panel = shownPanel(), all = units(panel), status = at("status") ? at("status").value : "";
    for (const unit of all) unit.hidden = !matches(unit.dataset) || (status !== "" && !unit.dataset.status.split(" ").includes(status));
    const left = all.filter(unit => !unit.hidden).length;
    panel.querySelector(".none").hidden = left > 0;
    at("matches").textContent = left === all.length ? "" : `${left} of ${all.length} units`;
  }

  function pick() {
    const wanted = { training: at("seed-training"), image: at("seed-image") };
    for (const tile of document.querySelectorAll(".tile")) {
      tile.hidden = Object.entries(wanted).some(([kind, select]) => select && select.value !== "" && tile.dataset[kind] !== select.value);
    }
  }

  // The mean over the shown pictures of one unit at one checkpoint.
  function score(unit, group) {
    const cell = cells(unit).find(one => one.dataset.group === group);
    const values = cell ? shownTiles(cell).map(tile => factsOf(tile).scores[at("measure").value]) : [];
    const there = values.filter(value => value !== undefined);
    return there.length ? there.reduce((sum, value) => sum + value, 0) / there.length : null;
  }

  function arrange() {
    if (!at("sort")) return;
    const how = at("sort").value, a = at("group-a").value, b = at("group-b").value;
    for (const label of document.querySelectorAll("[data-needs]")) label.hidden = !label.dataset.needs.split(" ").includes(how);
    const value = unit => {
      if (how === "order") return -Number(unit.dataset.unit);
      const one = score(unit, a), other = how === "difference" ? score(unit, b) : 0;
      return one === null || other === null ? null : one - other;
    };
    const panel = shownPanel(), before = units(panel), ranked = before.map(unit => [value(unit), unit]);
    // Largest first; units without the value last, in their own order.
    ranked.sort(([x, one], [y, other]) => {
      if (x === null || y === null) return (x === null) - (y === null) || one.dataset.unit - other.dataset.unit;
      return y - x || one.dataset.unit - other.dataset.unit;
    });
    for (const [value, unit] of ranked) {
      const text = value === null ? "no value" : `${how === "difference" && value > 0 ? "+" : ""}${Number(value.toPrecision(3))}`;
      const told = how === "order" ? "" : text.replace("-", "\u2212"), place = unit.querySelector(".value");
      if (place.textContent !== told) place.textContent = told;
    }
    // What is moved would lose the focus.
    const order = ranked.map(([, unit]) => unit);
    if (order.some((unit, place) => unit !== before[place])) panel.querySelector(".units").append(...order);
  }

  // The picture with the same seeds in another cell.
  function counterpart(tile, cell) {
    if (tile.matches(".exemplar")) {
      const place = [...cellOf(tile).querySelectorAll(".exemplar")].indexOf(tile);
      return cell.querySelectorAll(".exemplar")[place] || null;
    }
    const there = shownTiles(cell);
    return there.find(one => one.dataset.training === tile.dataset.training && one.dataset.image === tile.dataset.image) || there[0] || null;
  }

  function neighbour(tile, direction) {
    const own = cellOf(tile), step = direction === "left" || direction === "up" ? -1 : 1;
    const kind = tile.matches(".exemplar") ? cell => [...cell.querySelectorAll(".exemplar")] : shownTiles;
    const along = cells(unitOf(tile)).flatMap(kind);
    if ((direction === "left" || direction === "right") && along.length > 1) return along[along.indexOf(tile) + step] || null;
    const rows = units(shownPanel()).filter(unit => !unit.hidden);
    for (let row = rows.indexOf(unitOf(tile)) + step; row >= 0 && row < rows.length; row += step) {
      const cell = cells(rows[row]).find(one => one.dataset.group === own.dataset.group);
      const found = cell && counterpart(tile, cell);
      if (found) return found;
    }
    return null;
  }

  // The unit's cells with a K and a picture, in the slider's order.
  const sweep = tile => cells(unitOf(tile)).filter(cell => cell.dataset.k !== undefined && shownTiles(cell).length);

  function scale(tile) {
    const along = sweep(tile), place = along.indexOf(cellOf(tile));
    at("through").hidden = along.length < 2 || tile.matches(".exemplar");
    slider.max = String(Math.max(0, along.length - 1));
    if (place >= 0) slider.value = String(place);
    slider.setAttribute("aria-valuetext", cellOf(tile).dataset.label);
    at("ticks").replaceChildren(...along.map((cell, index) => {
      const tick = document.createElement("span");
      tick.textContent = cell.dataset.k;
      tick.className = index === place ? "now" : "";
      return tick;
    }));
  }

  function sparkline(points) {
    const place = at("spark");
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
    const room = at("large-picture").clientWidth, tall = window.innerHeight - 190;
    const side = Math.min(room / image.naturalWidth, tall / image.naturalHeight);
    image.style.width = `${image.naturalWidth * (side >= 1 ? Math.floor(side) : side)}px`;
  }

  function natural(tile) {
    if (tile.matches(".exemplar")) return [];
    const own = cellOf(tile).querySelector(".exemplar-images");
    const from = own ? [...own.querySelectorAll(".exemplar")] : [...unitOf(tile).querySelectorAll(".exemplar-grid img")];
    return from.map(one => {
      const copy = document.createElement("span");
      copy.append(...(one.tagName === "IMG" ? [one] : [...one.children]).map(part => part.cloneNode()));
      copy.firstChild.className = "";
      return copy;
    });
  }

  // `history`: "push" a new address, "replace" the one of the picture before, or "keep" it.
  function show(tile, address) {
    current = tile;
    const { title, pairs, trajectory, frames } = factsOf(tile), small = tile.querySelector("img"), mark = tile.querySelector(".mark");
    at("large-title").textContent = title;
    at("large-dead").hidden = Boolean(small);
    at("large-dead").textContent = tile.textContent.trim() || "no picture";
    holder.replaceChildren();
    if (small) {
      image.src = small.src;
      image.alt = small.alt;
      holder.append(image, ...(mark ? [mark.cloneNode()] : []));
    }
    at("large-facts").replaceChildren(...pairs.flatMap(([key, value]) => {
      const dt = document.createElement("dt"), dd = document.createElement("dd");
      dt.textContent = key;
      dd.textContent = value;
      return [dt, dd];
    }));
    const examples = natural(tile);
    at("large-natural").hidden = !examples.length;
    at("large-exemplars").replaceChildren(...examples);
    sparkline(trajectory);
    framesButton.hidden = !frames;
    framesButton.setAttribute("aria-pressed", "false");
    scale(tile);
    for (const button of dialog.querySelectorAll("[data-move]")) button.disabled = !neighbour(tile, button.dataset.move);
    if (!dialog.open) dialog.showModal();
    if (address !== "keep") write(address === "push");
    if (small) image.decode().then(fit, () => {});
  }

  function move(direction) {
    const next = current && neighbour(current, direction);
    if (!next) return;
    if (dialog.open) show(next, "replace");
    else { current = next; next.focus(); }
  }

  // Back in the address too, where opening it was a step of its own.
  function close() {
    dialog.close();
    if (history.state && history.state.own && location.hash.includes("open=")) history.back();
    else write(false);
  }

  if (dialog) {
    // Switch between the picture and the GIF of its optimization.
    framesButton.addEventListener("click", () => {
      const playing = framesButton.getAttribute("aria-pressed") === "true";
      image.src = playing ? current.querySelector("img").src : factsOf(current).frames;
      framesButton.setAttribute("aria-pressed", String(!playing));
    });
    slider.addEventListener("input", () => {
      const cell = sweep(current)[Number(slider.value)];
      const tile = cell && counterpart(current, cell);
      if (tile) show(tile, "replace");
    });
    document.addEventListener("click", event => {
      const tile = event.target.closest(pictures), button = event.target.closest("[data-move]"), name = event.target.closest(".name");
      if (tile) show(tile, "push");
      if (button) move(button.dataset.move);
      const first = name && cells(unitOf(name)).flatMap(shownTiles)[0];
      if (first) { show(first, "push"); if (!at("through").hidden) slider.focus(); }
      if (event.target === dialog || event.target.id === "close") close();
    });
    document.addEventListener("keydown", event => {
      const arrow = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" }[event.key];
      const tile = document.activeElement.closest(pictures), owns = event.target === slider && (arrow === "left" || arrow === "right");
      if (!arrow || event.altKey || event.ctrlKey || event.metaKey || (!dialog.open && !tile) || owns) return;
      if (!dialog.open) current = tile;
      event.preventDefault();
      move(arrow);
    });
    dialog.addEventListener("cancel", event => { event.preventDefault(); close(); });
    dialog.addEventListener("close", () => current && current.focus());
  }
  for (const button of choices) button.addEventListener("click", () => {
    for (const panel of panels) panel.hidden = panel.id !== button.dataset.panel;
    update();
    write(true);
  });
  for (const [control] of controls) {
    const typed = control.tagName === "INPUT";
    control.addEventListener(typed ? "input" : "change", () => { update(); write(!typed); });
  }
  window.addEventListener("popstate", read);
  window.addEventListener("resize", () => dialog && dialog.open && image.isConnected && fit());
  if (/^#[\w-]+$/.test(location.hash)) update();
  else read();
})();
