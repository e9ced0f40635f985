// What pointers do on a viewer: a tool's own work, or moving, zooming and brightening the picture.
//
// A tool has `press`, `move` and `release`, which get the pointer's event, `cancel`, and `drags`,
// whether what is dragged with the main button is the tool's; otherwise that moves the picture.

const SLACK = { touch: 12, pen: 6, mouse: 4 }; // within which a press that moves is still a click

/**
 * Args:
 *   viewer: the Viewer.
 *   tool: gives the tool in use.
 *   told: `{ ready, hover(event), left(), window(dx, dy), pan }`: `ready()` says whether there is a
 *     picture to work on, and `pan()` whether every drag moves it.
 */
export function listen(viewer, tool, told) {
  const { canvas } = viewer;
  const pointers = new Map();
  let doing = null; // "tool", "move", "window", "pinch" or "click": a press that may become one
  let start = null;

  const spread = () => {
    const [a, b] = [...pointers.values()];
    return {
      x: (a.clientX + b.clientX) / 2,
      y: (a.clientY + b.clientY) / 2,
      size: Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY),
    };
  };

  canvas.addEventListener("contextmenu", (event) => event.preventDefault());

  canvas.addEventListener("pointerdown", (event) => {
    if (!told.ready()) return;
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, event);
    if (pointers.size === 2) {
      if (doing === "tool") tool().cancel();
      doing = "pinch";
      start = spread();
    } else if (pointers.size === 1) {
      start = event;
      if (event.button === 1 || told.pan()) doing = "move";
      else if (tool().windows) doing = "window";
      else if (tool().drags) {
        doing = "tool";
        tool().press(event);
      } else doing = "click";
    }
    if (event.button === 1) event.preventDefault();
  });

  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse" || pointers.size) told.hover(event);
    if (!pointers.has(event.pointerId)) return;
    const before = pointers.get(event.pointerId);
    const pinch = doing === "pinch" ? spread() : null;
    pointers.set(event.pointerId, event);
    const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
    if (doing === "pinch" && pointers.size === 2) {
      const now = spread();
      viewer.move(now.x - pinch.x, now.y - pinch.y);
      viewer.zoom(now.size / Math.max(pinch.size, 1), now.x, now.y);
    } else if (doing === "tool") {
      const passed = event.getCoalescedEvents?.() ?? [];
      for (const each of passed.length ? passed : [event]) tool().move(each);
    } else if (doing === "window") {
      told.window(dx, dy);
    } else if (doing === "move") {
      viewer.move(dx, dy);
    } else if (doing === "click") {
      const gone = Math.hypot(event.clientX - start.clientX, event.clientY - start.clientY);
      if (gone > SLACK[event.pointerType] && start.button === 0) {
        doing = "move";
        viewer.move(event.clientX - start.clientX, event.clientY - start.clientY);
      }
    }
  });

  const end = (event, given) => {
    if (!pointers.delete(event.pointerId)) return;
    if (doing === "tool") given ? tool().release(event) : tool().cancel();
    else if (doing === "click" && given) tool().click(start);
    // A finger that is left after two does nothing.
    if (!pointers.size) doing = null;
    else if (doing !== "pinch") doing = "pinch";
  };
  canvas.addEventListener("pointerup", (event) => end(event, true));
  canvas.addEventListener("pointercancel", (event) => end(event, false));
  canvas.addEventListener("pointerleave", () => told.left());

  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const unit = [1, 16, 400][event.deltaMode];
      // A pinch on a touchpad comes as a wheel with Ctrl, in small steps.
      const rate = event.ctrlKey ? 0.01 : 0.0015;
      viewer.zoom(Math.exp(-event.deltaY * unit * rate), event.clientX, event.clientY);
    },
    { passive: false },
  );
  return { cancel: () => doing === "tool" && tool().cancel() };
}
