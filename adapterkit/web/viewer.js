// gradio runs this once, with the component's `element` and `trigger`. The drawing in it is replaced
// again and again, so the listeners are on the element.

element.addEventListener("click", (event) => {
  const drawing = event.target.closest(".frame svg");
  if (!drawing) return;
  // From the window's pixels to the drawing's units, of which it is `width` x `height`.
  const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(
    drawing.getScreenCTM().inverse(),
  );
  const { width, height } = drawing.viewBox.baseVal;
  if (x < 0 || y < 0 || x > width || y > height) return;
  trigger("mark", { x: x / width, y: y / height, shift: event.shiftKey });
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
