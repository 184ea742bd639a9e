"use strict";
// The page is complete without this: it adds sorting, and lights up a mark and its row together.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th[data-sort]").forEach((head) => {
    const column = head.cellIndex;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const order = (a, b) => {
        const [left, right] = [value(a), value(b)];
        if (left === "" || right === "") return (left === "") - (right === "");
        const text = head.dataset.sort === "text";
        return (text ? left.localeCompare(right) : left - right) * (down ? -1 : 1);
      };
      body.append(...[...body.rows].sort(order));
    });
  });
}
for (const name of ["pointerover", "pointerout", "focusin", "focusout"]) {
  document.addEventListener(name, (event) => {
    const at = event.target.closest?.("[data-variant]");
    if (!at) return;
    const on = name === "pointerover" || name === "focusin";
    for (const same of document.querySelectorAll(`[data-variant="${at.dataset.variant}"]`)) {
      same.classList.toggle("lit", on);
    }
  });
}
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
