// The keyboard in the Review view: arrows move, Space selects, a letter decides about the selected images or the current one.
const form = document.getElementById("review");
if (form) {
  const boxes = [...form.querySelectorAll("input[name=ids]")];
  const label = form.querySelector("select[name=label]");
  let current = 0;

  const moveTo = (index) => {
    current = Math.max(0, Math.min(boxes.length - 1, index));
    boxes[current].focus();
    boxes[current].closest("tr").scrollIntoView({ block: "nearest" });
  };

  const decide = (action) => {
    if (!boxes.some((box) => box.checked)) boxes[current].checked = true;
    if (action === "relabel") {
      const suggested = boxes.filter((box) => box.checked).map((box) => box.closest("tr").dataset.suggested);
      if (suggested.every((value) => value && value === suggested[0])) label.value = suggested[0];
      else { label.focus(); return; } // the labels differ, or none is suggested
    }
    form.querySelector(`button[value=${action}]`).click();
  };

  const keys = { ArrowDown: () => moveTo(current + 1), ArrowUp: () => moveTo(current - 1),
    k: () => decide("keep"), d: () => decide("drop"), r: () => decide("relabel") };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT" || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  boxes.forEach((box, index) => box.addEventListener("focus", () => { current = index; }));
  document.getElementById("all").addEventListener("change", (event) => {
    for (const box of boxes) box.checked = event.target.checked;
  });
  moveTo(0);
}
