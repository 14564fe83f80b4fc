"use strict";
// What the gallery and the page of a study share: choosing a panel, filtering units, and the enlarged picture.
const at = id => document.getElementById(id);
const facts = JSON.parse(at("facts").textContent);
const panels = [...document.querySelectorAll(".panel")];
const choices = [...document.querySelectorAll("[data-panel]")];
const dialog = at("large"), holder = at("large-image"), image = new Image();
let current = null;

const shownPanel = () => panels.find(panel => !panel.hidden);

// One panel at a time; without this script all of them are on the page.
function showPanel(id) {
  for (const panel of panels) panel.hidden = panel.id !== id;
  for (const button of choices) button.setAttribute("aria-pressed", String(button.dataset.panel === id));
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

// How many of the shown panel's heads or lines the filter has left.
function count(units) {
  const left = units.filter(one => !one.hidden).length;
  at("matches").textContent = left === units.length ? "" : `${left} of ${units.length} units`;
}

// Fill the dialog with a tile's picture and facts; returns the tile's own picture, if it has one.
function enlarge(tile, neighbour) {
  current = tile;
  const { title, pairs } = facts[Number(tile.dataset.facts)], small = tile.querySelector("img");
  at("large-title").textContent = title;
  at("large-dead").hidden = Boolean(small);
  holder.replaceChildren();
  if (small) {
    const mark = tile.querySelector(".mark");
    image.src = small.src;
    image.alt = title;
    holder.append(image, ...(mark ? [mark.cloneNode()] : []));
  }
  at("large-facts").replaceChildren(...pairs.flatMap(([key, value]) => {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = key;
    dd.textContent = value;
    return [dt, dd];
  }));
  for (const button of dialog.querySelectorAll("[data-move]")) button.disabled = !neighbour(tile, button.dataset.move);
  return small;
}

// Listen to clicks and arrow keys. `tiles` selects what can be enlarged; `owns` says whether an element uses an arrow itself.
function browse({ tiles, neighbour, show, choose, narrow, clicked = () => {}, owns = () => false }) {
  function move(direction) {
    const next = current && neighbour(current, direction);
    if (!next) return;
    if (dialog.open) show(next);
    else { current = next; next.focus(); }
  }
  document.addEventListener("click", event => {
    const tile = event.target.closest(tiles), button = event.target.closest("[data-move]");
    if (tile) show(tile);
    if (button) move(button.dataset.move);
    clicked(event);
    if (event.target === dialog || event.target.id === "close") dialog.close();
  });
  document.addEventListener("keydown", event => {
    const arrow = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" }[event.key];
    const tile = document.activeElement.closest(tiles);
    if (!arrow || event.altKey || event.ctrlKey || event.metaKey || (!dialog.open && !tile) || owns(event.target, arrow)) return;
    if (!dialog.open) current = tile;
    event.preventDefault();
    move(arrow);
  });
  dialog.addEventListener("close", () => current && current.focus());
  for (const button of choices) button.addEventListener("click", () => choose(button.dataset.panel));
  at("filter").addEventListener("input", narrow);
}
