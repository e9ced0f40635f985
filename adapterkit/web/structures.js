// gradio runs this once, with the component's `element` and `trigger`.

element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-structure]");
  if (button) trigger("choose", { structure: Number(button.dataset.structure) });
});
