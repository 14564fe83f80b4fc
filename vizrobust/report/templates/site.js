"use strict";
// A unit's page: one network at a time, chosen by slider, arrow keys, picture or address.
(() => {
  const at = id => document.getElementById(id);
  const parts = [...document.querySelectorAll(".part")], keys = [...new Set(parts.map(part => part.dataset.key))];
  const slider = at("slider"), ticks = at("ticks") ? [...at("ticks").children] : [];
  let now = keys.length - 1;
  document.documentElement.classList.add("js");

  function show(place, write) {
    now = Math.max(0, Math.min(keys.length - 1, place));
    for (const part of parts) part.hidden = part.dataset.key !== keys[now];
    for (const link of document.querySelectorAll("[data-choose]")) link.classList.toggle("now", link.dataset.choose === keys[now]);
    ticks.forEach((tick, index) => { tick.className = index === now ? "now" : ""; });
    if (slider) { slider.value = String(now); slider.setAttribute("aria-valuetext", ticks[now].textContent); }
    if (write) history.replaceState(null, "", `#${keys[now]}`);
  }

  function read() {
    const place = keys.indexOf(decodeURIComponent(location.hash.slice(1)));
    show(place < 0 ? now : place, false);
  }

  function turn(rel) {
    const link = document.querySelector(`link[rel="${rel}"]`);
    if (link) location.href = link.href + location.hash;
  }

  document.addEventListener("keydown", event => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches("pre, input:not(#slider)")) return;
    if (event.key === "ArrowLeft") show(now - 1, true);
    else if (event.key === "ArrowRight") show(now + 1, true);
    else if (event.target === slider && event.key === "ArrowUp") turn("prev");
    else if (event.target === slider && event.key === "ArrowDown") turn("next");
    else if (event.key === "p") turn("prev");
    else if (event.key === "n") turn("next");
    else return;
    event.preventDefault();
  });
  document.addEventListener("change", event => {
    for (const [box, name, on] of [[".hot", "cold", false], [".fine", "fine-pixels", true]]) {
      if (!event.target.matches(box)) continue;
      document.body.classList.toggle(name, event.target.checked === on);
      for (const other of document.querySelectorAll(box)) other.checked = event.target.checked;
    }
  });
  if (slider) slider.addEventListener("input", () => show(Number(slider.value), true));
  at("copy").addEventListener("click", () => {
    // From disk there is no clipboard of its own.
    const text = document.createElement("textarea");
    text.value = location.href;
    document.body.append(text);
    text.select();
    const done = document.execCommand("copy");
    text.remove();
    at("copy").textContent = done ? "Copied" : "Copy failed";
  });
  window.addEventListener("hashchange", read);
  read();
})();
