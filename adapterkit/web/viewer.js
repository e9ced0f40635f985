// gradio runs this once, with the component's `element` and `trigger`. The drawing in it is replaced
// again and again, so the listeners are on the element.

element.addEventListener("click", (event) => {
  const drawing = event.target.closest("svg");
  if (!drawing) return;
  const box = drawing.getBoundingClientRect();
  trigger("mark", {
    x: (event.clientX - box.left) / box.width,
    y: (event.clientY - box.top) / box.height,
    shift: event.shiftKey,
  });
});

// An image dropped on the picture goes where files are opened.
element.addEventListener("dragover", (event) => event.preventDefault());
element.addEventListener("drop", (event) => {
  event.preventDefault();
  const input = document.querySelector("#open input[type=file]");
  if (!input || !event.dataTransfer.files.length) return;
  input.files = event.dataTransfer.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});
