(() => {
  const framesButton = at("frames");

  function choose(id) {
    showPanel(id);
    countUnits();
  }

  function narrow() {
    const matches = matcher(at("filter").value);
    for (const panel of panels) {
      const heads = [...panel.querySelectorAll(".head")];
      const shown = heads.map(head => matches(head.dataset));
      heads.forEach((head, i) => { head.hidden = !shown[i]; });
      for (const line of panel.querySelectorAll(".line")) {
        line.querySelectorAll(".cell").forEach((cell, i) => { cell.hidden = !shown[i]; });
      }
      const left = shown.filter(Boolean).length;
      panel.style.setProperty("--columns", Math.max(1, left));
      panel.querySelector(".scroll").hidden = left === 0;
      panel.querySelector(".none").hidden = left > 0;
    }
    countUnits();
  }

  function countUnits() {
    count([...document.querySelectorAll(".panel:not([hidden]) .head")]);
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
    const room = at("large-picture").clientWidth, tall = window.innerHeight - 120;
    const side = Math.min(room / image.naturalWidth, tall / image.naturalHeight);
    image.style.width = `${image.naturalWidth * (side >= 1 ? Math.floor(side) : side)}px`;
  }

  function show(tile) {
    const small = enlarge(tile, neighbour), { trajectory, frames } = facts[Number(tile.dataset.facts)];
    sparkline(trajectory);
    framesButton.hidden = !frames;
    framesButton.setAttribute("aria-pressed", "false");
    if (!dialog.open) dialog.showModal();
    if (small) image.decode().then(fit, () => {});
  }

  // Switch between the picture and the GIF of its optimization.
  function showFrames() {
    const playing = framesButton.getAttribute("aria-pressed") === "true";
    image.src = playing ? current.querySelector("img").src : facts[Number(current.dataset.facts)].frames;
    framesButton.setAttribute("aria-pressed", String(!playing));
  }

  framesButton.addEventListener("click", showFrames);
  browse({ tiles: ".tile, .exemplar", neighbour, show, choose, narrow });
  window.addEventListener("resize", () => dialog.open && image.isConnected && fit());
  if (panels.length) choose(panels[0].id);
})();
