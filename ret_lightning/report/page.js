"use strict";
// Sorting and filtering of the tables; everything else works without JavaScript.
document.documentElement.classList.add("scripted");

const compare = new Intl.Collator("en", { numeric: true, sensitivity: "base" }).compare;

/** Return the value to sort a row by: the cell's number if it has one, else its text; null for an empty cell. */
function sortKey(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.value !== undefined) return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  const text = cell.textContent.trim();
  return text === "" || text === "–" ? null : text;
}

function sortBy(table, header, status) {
  const descending = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const keyed = Array.from(body.rows, (row) => [sortKey(row, header.cellIndex), row]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null); // empty cells stay last in both directions
    const order = typeof a === "number" && typeof b === "number" ? a - b : compare(String(a), String(b));
    return descending ? -order : order;
  });
  body.append(...keyed.map(([, row]) => row));
  status.textContent = `sorted by ${header.textContent.trim()}, ${descending ? "descending" : "ascending"}`;
}

function filter(input, items, status) {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  let visible = 0;
  for (const item of items()) {
    const text = item.textContent.toLowerCase();
    item.hidden = !words.every((word) => text.includes(word));
    visible += item.hidden ? 0 : 1;
  }
  status.textContent = words.length ? `${visible} of ${items().length} displayed` : "";
}

for (const block of document.querySelectorAll("[data-block]")) {
  const status = block.querySelector("[role=status]");
  const table = block.querySelector("table");
  const input = block.querySelector("input");
  for (const header of table ? table.tHead.rows[0].cells : []) {
    header.querySelector("button")?.addEventListener("click", () => sortBy(table, header, status));
  }
  const items = () => block.querySelectorAll(table ? "tbody > tr" : "article");
  input?.addEventListener("input", () => filter(input, items, status));
}
