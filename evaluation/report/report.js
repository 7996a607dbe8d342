// Tables that sort, and films that follow a slider; it stands in the page itself.
"use strict";

for (const table of document.querySelectorAll("table")) {
  const rows = [...table.rows], body = rows.slice(1);
  if (body.length < 2) continue;
  [...rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending" && column > 0 ||
        head.getAttribute("aria-sort") === "ascending";
      for (const other of rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => {
        const text = row.cells[column] ? row.cells[column].textContent.trim() : "";
        return /^[-+]?[0-9.]/.test(text) ? parseFloat(text) : text === "-" || !text ? null : text;
      };
      const order = (one, other) => {
        const [a, b] = [value(one), value(other)];
        if (a === null || b === null) return (a === null) - (b === null); // dashes stay below
        const found = typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
        return down ? -found : found;
      };
      for (const row of [...body].sort(order)) row.parentNode.append(row);
    });
  });
}
const films = [...document.querySelectorAll(".film")], slider = document.getElementById("horizon");
if (films.length) {
  const play = document.getElementById("play"), told = document.getElementById("ahead");
  let timer = 0;
  const show = () => {
    const step = Number(slider.value);
    for (const film of films) {
      const last = Number(film.dataset.frames) - 1, at = Math.min(step, last);
      film.style.backgroundPosition = `0 ${last ? 100 * at / last : 0}%`;
    }
    told.textContent = step ? `${step} steps ahead` : "the last true frame";
    for (const table of document.querySelectorAll("table")) {
      const heads = [...table.rows[0].cells];
      if (heads[0].textContent !== "steps ahead") continue;
      const horizons = heads.map((head, at) => at ? Number(head.textContent) : 0);
      const now = Math.max(...horizons.map((horizon, at) => horizon <= step ? at : 0));
      for (const row of table.rows) {
        [...row.cells].forEach((cell, at) => cell.classList.toggle("now", at > 0 && at === now));
      }
    }
  };
  slider.addEventListener("input", show);
  play.addEventListener("click", () => {
    const plays = !timer;
    play.textContent = plays ? "Pause" : "Play";
    play.setAttribute("aria-pressed", String(plays));
    clearInterval(timer);
    timer = !plays ? 0 : setInterval(() => {
      slider.value = Number(slider.value) >= Number(slider.max) ? 0 : Number(slider.value) + 1;
      show();
    }, 100);
  });
  show();
}
