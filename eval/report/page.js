"use strict";

// A column sorts its table by the button in its head; what was not measured stays last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = column === 0 ? head.getAttribute("aria-sort") === "ascending"
                              : head.getAttribute("aria-sort") !== "descending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = row => {
      const cell = row.cells[column];
      if (column === 0) return cell.textContent.toLowerCase();
      return "sort" in cell.dataset ? Number(cell.dataset.sort) : null;
    };
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === null || y === null) return (x === null) - (y === null);
      const order = x < y ? -1 : x > y ? 1 : 0;
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows);
  }));
}

// A table that goes on beyond the screen says so.
const onwards = new ResizeObserver(entries => entries.forEach(({ target }) => {
  const said = target.previousElementSibling;
  if (said?.className === "onwards") said.hidden = target.scrollWidth <= target.clientWidth + 1;
}));
document.querySelectorAll(".scroll").forEach(table => onwards.observe(table));
