"use strict";
const body = document.querySelector("#table tbody");
const rows = Array.from(body.rows);
const which = document.getElementById("which");
const least = document.getElementById("snr");

function filter() {
  let shown = 0;
  for (const row of rows) {
    const wanted = (which.value === "all" || row.dataset.detected === "1")
      && Math.abs(Number(row.dataset.snr)) >= Number(least.value || 0);
    row.hidden = !wanted;
    shown += wanted ? 1 : 0;
  }
  document.getElementById("count").textContent = `${shown} shown`;
}

// Numbers sort as numbers, the rest as text; what is unknown (NaN or empty) comes last either way.
function sortBy(key, up) {
  const known = (text) => text !== "" && text !== "nan";
  rows.sort((a, b) => {
    const s = a.dataset[key], t = b.dataset[key];
    if (!known(s) || !known(t)) return Number(known(t)) - Number(known(s));
    const order = isNaN(s) || isNaN(t) ? s.localeCompare(t) : Number(s) - Number(t);
    return up ? order : -order;
  });
  body.append(...rows);
}

for (const head of document.querySelectorAll("#table th[data-sort]")) {
  head.tabIndex = 0;
  const click = () => {
    const up = head.classList.contains("sorted") ? !head.classList.contains("up")
      : !["score", "snr", "flux"].includes(head.dataset.sort);
    document.querySelectorAll("#table th").forEach((other) => other.classList.remove("sorted", "up"));
    head.classList.add("sorted");
    head.classList.toggle("up", up);
    sortBy(head.dataset.sort, up);
  };
  head.addEventListener("click", click);
  head.addEventListener("keydown", (event) => { if (event.key === "Enter") click(); });
}
which.addEventListener("change", filter);
least.addEventListener("input", filter);
document.getElementById("picture").addEventListener("click", (event) => event.currentTarget.classList.toggle("full"));
filter();
