(() => {
  const slider = at("slider");

  document.documentElement.classList.add("js");
  if (!panels.length) return;

  const lines = panel => [...panel.querySelectorAll(".line.unit")];
  const shownTiles = cell => [...cell.querySelectorAll(".tile:not([hidden])")];
  const cells = line => [...line.querySelectorAll(".cell[data-group]")];

  function choose(id) {
    showPanel(id);
    arrange();
    count(lines(shownPanel()));
  }

  function narrow() {
    const matches = matcher(at("filter").value);
    for (const panel of panels) {
      for (const line of lines(panel)) line.hidden = !matches(line.dataset);
      const left = lines(panel).some(line => !line.hidden);
      panel.querySelector(".scroll").hidden = !left;
      panel.querySelector(".none").hidden = left;
    }
    count(lines(shownPanel()));
  }

  // The mean over the shown pictures of one unit at one checkpoint.
  function score(line, group) {
    const cell = cells(line).find(one => one.dataset.group === group);
    const values = cell ? shownTiles(cell).map(tile => facts[Number(tile.dataset.facts)].scores[at("measure").value]) : [];
    const there = values.filter(value => value !== undefined);
    return there.length ? there.reduce((sum, value) => sum + value, 0) / there.length : null;
  }

  function arrange() {
    const how = at("sort").value, a = at("group-a").value, b = at("group-b").value;
    at("group-b").disabled = how !== "difference";
    at("group-a").disabled = at("measure").disabled = how === "order";
    const panel = shownPanel(), sheet = panel.querySelector(".sheet");
    const value = line => {
      if (how === "order") return -Number(line.dataset.unit);
      const one = score(line, a), other = how === "difference" ? score(line, b) : 0;
      return one === null || other === null ? null : one - other;
    };
    const ranked = lines(panel).map(line => [value(line), line]);
    // Largest first; units without the value last, in their own order.
    ranked.sort(([x, one], [y, other]) => {
      if (x === null || y === null) return (x === null) - (y === null) || one.dataset.unit - other.dataset.unit;
      return y - x || one.dataset.unit - other.dataset.unit;
    });
    for (const [value, line] of ranked) {
      const text = value === null ? "no value" : `${how === "difference" && value > 0 ? "+" : ""}${Number(value.toPrecision(3))}`;
      line.querySelector(".value").textContent = how === "order" ? "" : text.replace("-", "\u2212");
      sheet.append(line);
    }
  }

  function pick() {
    const wanted = { training: at("seed-training"), image: at("seed-image") };
    for (const tile of document.querySelectorAll(".tile")) {
      tile.hidden = Object.entries(wanted).some(([kind, select]) => select && select.value !== "" && tile.dataset[kind] !== select.value);
    }
    arrange();
  }

  const cellOf = tile => tile.closest(".cell");
  const lineOf = tile => tile.closest(".line");

  // The picture with the same seeds in another cell.
  function counterpart(tile, cell) {
    const there = shownTiles(cell);
    return there.find(one => one.dataset.training === tile.dataset.training && one.dataset.image === tile.dataset.image) || there[0] || null;
  }

  function neighbour(tile, direction) {
    const own = cellOf(tile), step = direction === "left" || direction === "up" ? -1 : 1;
    if (direction === "left" || direction === "right") {
      const along = cells(lineOf(tile)).flatMap(shownTiles);
      return along[along.indexOf(tile) + step] || null;
    }
    const rows = lines(shownPanel()).filter(line => !line.hidden);
    for (let row = rows.indexOf(lineOf(tile)) + step; row >= 0 && row < rows.length; row += step) {
      const cell = cells(rows[row]).find(one => one.dataset.group === own.dataset.group);
      const found = cell && counterpart(tile, cell);
      if (found) return found;
    }
    return null;
  }

  // The unit's cells with a K and a picture, in the slider's order.
  const sweep = tile => cells(lineOf(tile)).filter(cell => cell.dataset.k !== undefined && shownTiles(cell).length);

  function scale(tile) {
    const along = sweep(tile), place = along.indexOf(cellOf(tile));
    at("through").hidden = along.length < 2;
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

  function show(tile, focusSlider = false) {
    enlarge(tile, neighbour);
    const natural = [...lineOf(tile).querySelectorAll(".exemplar-grid img")].map(one => {
      const copy = one.cloneNode();
      copy.className = "";
      return copy;
    });
    at("large-natural").hidden = !natural.length;
    at("large-exemplars").replaceChildren(...natural);
    scale(tile);
    if (!dialog.open) dialog.showModal();
    if (focusSlider) slider.focus();
  }

  slider.addEventListener("input", () => {
    const cell = sweep(current)[Number(slider.value)];
    const tile = cell && counterpart(current, cell);
    if (tile) show(tile);
  });

  // A unit's name opens its first picture with the slider in focus.
  function clicked(event) {
    const name = event.target.closest(".name"), first = name && cells(lineOf(name)).flatMap(shownTiles)[0];
    if (first) show(first, true);
  }

  const owns = (target, arrow) => target === slider && (arrow === "left" || arrow === "right");
  browse({ tiles: ".tile", neighbour, show, choose, narrow, clicked, owns });
  for (const id of ["sort", "measure", "group-a", "group-b"]) at(id).addEventListener("change", arrange);
  for (const id of ["seed-training", "seed-image"]) if (at(id)) at(id).addEventListener("change", pick);
  // A starts at the largest K, B at the smallest: the difference that the study is about.
  const sweptGroups = [...new Set([...document.querySelectorAll(".cell[data-k]")].map(cell => cell.dataset.group))];
  if (sweptGroups.length) {
    at("group-a").value = sweptGroups[sweptGroups.length - 1];
    at("group-b").value = sweptGroups[0];
  }
  panels.forEach((panel, index) => { panel.hidden = index > 0; });
  pick();
  choose(panels[0].id);
})();
