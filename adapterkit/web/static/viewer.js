// A canvas that shows a picture with masks and marks: where it is, how large, and how bright.
//
// Pixels are counted from the picture's upper left corner, and pixel (x, y) covers x to x + 1, y to
// y + 1. `scale` is how many units of the screen a pixel is high; it is `ratio` times as wide.

const SHARP = 6; // From this scale on pixels are seen as what they are, and so are masks' borders.
const NEAREST = 64; // the largest scale
const MARK = 7.5; // radius of a click's mark, in units of the screen

export class Viewer {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.picture = null; // what is drawn: a canvas
    this.original = null; // the pixels as the server gave them
    Object.assign(this, { width: 1, height: 1, ratio: 1, scale: 1, x: 0, y: 0, fitted: true });
    Object.assign(this, { low: 0, high: 255 }); // values that are seen as black and as white
    Object.assign(this, { masks: [], marks: [], box: null, cross: null, brush: null });
    Object.assign(this, { chosen: 0, outlines: true, asked: false });
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.resize();
  }

  // What is shown

  /**
   * Show another picture. Of one that is very large, the server gives a smaller one to show.
   *
   * Args:
   *   bitmap: the picture.
   *   size: `{ width, height, pixel_ratio }` of the image.
   *   keep: whether to look at the same place as before.
   */
  show(bitmap, { width, height, pixel_ratio: ratio }, keep = false) {
    const changed = width !== this.width || height !== this.height;
    Object.assign(this, { width, height, ratio });
    this.picture ??= document.createElement("canvas");
    Object.assign(this.picture, { width: bitmap.width, height: bitmap.height });
    this.bitmap = bitmap;
    this.original = null;
    this.recoloured = false;
    if (changed || !keep) this.fit();
    this.draw();
  }

  clear() {
    Object.assign(this, { picture: null, masks: [], marks: [], box: null, cross: null });
    this.draw();
  }

  /** See values up to `low` as black and from `high` on as white. */
  setWindow(low, high) {
    Object.assign(this, { low, high: Math.max(high, low + 1), recoloured: false });
    this.draw();
  }

  /** Make of the pixels what is seen of them, once before they are next shown. */
  recolour() {
    if (this.recoloured) return;
    this.recoloured = true;
    const context = this.picture.getContext("2d", { willReadFrequently: true });
    if (this.low === 0 && this.high === 255) {
      context.drawImage(this.bitmap, 0, 0);
      return;
    }
    const { width, height } = this.picture;
    if (!this.original) {
      context.drawImage(this.bitmap, 0, 0);
      this.original = context.getImageData(0, 0, width, height);
    }
    const seen = new Uint8ClampedArray(256);
    for (let value = 0; value < 256; value++) {
      seen[value] = ((value - this.low) / (this.high - this.low)) * 255;
    }
    const made = new ImageData(width, height);
    const [from, to] = [this.original.data, made.data];
    for (let at = 0; at < from.length; at += 4) {
      to[at] = seen[from[at]];
      to[at + 1] = seen[from[at + 1]];
      to[at + 2] = seen[from[at + 2]];
      to[at + 3] = 255;
    }
    context.putImageData(made, 0, 0);
  }

  // Where it is

  resize() {
    const { clientWidth, clientHeight } = this.canvas;
    this.dense = window.devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(clientWidth * this.dense));
    this.canvas.height = Math.max(1, Math.round(clientHeight * this.dense));
    if (this.fitted) this.fit();
    else this.place(this.x, this.y);
    this.paint(); // At once, since a canvas that is resized is empty.
  }

  fitScale() {
    const { clientWidth, clientHeight } = this.canvas;
    return Math.min(clientWidth / (this.width * this.ratio), clientHeight / this.height) || 1;
  }

  fit() {
    this.scale = this.fitScale();
    this.fitted = true;
    this.place(0, 0);
  }

  /** Put the picture's corner there, as far as the picture stays in sight. */
  place(x, y) {
    const { clientWidth, clientHeight } = this.canvas;
    const within = (at, size, room) =>
      size <= room ? (room - size) / 2 : Math.min(room / 2, Math.max(room / 2 - size, at));
    this.x = within(x, this.width * this.ratio * this.scale, clientWidth);
    this.y = within(y, this.height * this.scale, clientHeight);
    this.draw();
  }

  move(dx, dy) {
    this.place(this.x + dx, this.y + dy);
  }

  /** Zoom by a factor, where the pixel under a point of the window stays there. */
  zoom(factor, clientX, clientY) {
    const bounds = this.canvas.getBoundingClientRect();
    const [px, py] = [
      (clientX ?? bounds.left + bounds.width / 2) - bounds.left,
      (clientY ?? bounds.top + bounds.height / 2) - bounds.top,
    ];
    const least = this.fitScale();
    const scale = Math.min(NEAREST, Math.max(least, this.scale * factor));
    const change = scale / this.scale;
    this.scale = scale;
    this.fitted = scale === least;
    this.place(px - (px - this.x) * change, py - (py - this.y) * change);
  }

  /** The point of the picture, in pixels, that is at a point of the window. */
  at(clientX, clientY) {
    const bounds = this.canvas.getBoundingClientRect();
    return {
      x: (clientX - bounds.left - this.x) / (this.scale * this.ratio),
      y: (clientY - bounds.top - this.y) / this.scale,
    };
  }

  /** The pixel there, or null outside of the picture. */
  pixel(clientX, clientY) {
    const { x, y } = this.at(clientX, clientY);
    if (!this.picture || x < 0 || y < 0 || x > this.width || y > this.height) return null;
    // The right and the lower border belong to the last pixel.
    return {
      x: Math.min(Math.floor(x), this.width - 1),
      y: Math.min(Math.floor(y), this.height - 1),
    };
  }

  /** The point of the window where a point of the picture is. */
  on(x, y) {
    const bounds = this.canvas.getBoundingClientRect();
    return {
      clientX: bounds.left + this.x + x * this.scale * this.ratio,
      clientY: bounds.top + this.y + y * this.scale,
    };
  }

  /** Move so that a pixel is in sight. */
  reveal({ x, y }) {
    const { clientWidth, clientHeight } = this.canvas;
    const [px, py] = this.local(x + 0.5, y + 0.5);
    const by = (at, room) => Math.max(0, 24 - at) - Math.max(0, at - (room - 24));
    if (!this.fitted) this.move(by(px, clientWidth), by(py, clientHeight));
  }

  local(x, y) {
    return [this.x + x * this.scale * this.ratio, this.y + y * this.scale];
  }

  // Drawing

  /** Draw before the screen is next shown. */
  draw() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => {
      this.asked = false;
      this.paint();
    });
  }

  paint() {
    const { context } = this;
    context.setTransform(this.dense, 0, 0, this.dense, 0, 0);
    context.fillStyle = "#08090b";
    context.fillRect(0, 0, this.canvas.clientWidth + 1, this.canvas.clientHeight + 1);
    if (!this.picture) return;
    this.recolour();
    context.imageSmoothingEnabled = this.scale < SHARP;
    context.imageSmoothingQuality = "high";
    const size = [this.width * this.ratio * this.scale, this.height * this.scale];
    context.drawImage(this.picture, this.x, this.y, ...size);
    if (this.outlines) this.paintMasks();
    if (this.box) this.paintBox(this.box);
    for (const mark of this.marks) this.paintMark(mark);
    if (this.cross) this.paintCross(this.cross);
    if (this.brush) this.paintBrush(this.brush);
  }

  paintMasks() {
    const { context } = this;
    const place = new DOMMatrix([this.scale * this.ratio, 0, 0, this.scale, this.x, this.y]);
    context.lineJoin = "round";
    for (const mask of this.masks) {
      const path = new Path2D();
      path.addPath(this.scale < SHARP ? mask.smooth : mask.exact, place);
      context.globalAlpha = mask.label === this.chosen ? 0.24 : 0.14;
      context.fillStyle = mask.colour;
      context.fill(path, "evenodd");
      context.globalAlpha = 0.55;
      context.strokeStyle = "#000";
      context.lineWidth = 4;
      context.stroke(path);
      context.globalAlpha = 1;
      context.strokeStyle = mask.colour;
      context.lineWidth = mask.label === this.chosen ? 2.25 : 1.5;
      context.stroke(path);
    }
  }

  /** A disc with a plus in it, or a ring with a minus. */
  paintMark({ x, y, inside, colour }) {
    const { context } = this;
    const [px, py] = this.local(x + 0.5, y + 0.5);
    context.beginPath();
    context.arc(px, py, MARK, 0, 2 * Math.PI);
    context.fillStyle = inside ? colour : "#000";
    context.fill();
    context.lineWidth = 1.5;
    context.strokeStyle = inside ? "#fff" : colour;
    context.stroke();
    context.beginPath();
    context.moveTo(px - 4, py);
    context.lineTo(px + 4, py);
    if (inside) {
      context.moveTo(px, py - 4);
      context.lineTo(px, py + 4);
    }
    context.lineWidth = 2;
    context.strokeStyle = inside ? "#000" : colour;
    context.stroke();
  }

  paintBox({ x0, y0, x1, y1, colour }) {
    const { context } = this;
    const [[left, top], [right, bottom]] = [this.local(x0, y0), this.local(x1, y1)];
    this.twice("#000", colour, 4, 2, () => {
      context.setLineDash([7, 5]);
      context.strokeRect(left, top, right - left, bottom - top);
      context.setLineDash([]);
    });
  }

  /** The pixel that keys mark, with lines that lead to it. */
  paintCross({ x, y }) {
    const { context, canvas } = this;
    const [px, py] = this.local(x + 0.5, y + 0.5);
    const wide = Math.max(9, (this.scale * this.ratio) / 2);
    const high = Math.max(9, this.scale / 2);
    this.twice("#000a", "#fff", 3, 1, () => {
      context.beginPath();
      context.moveTo(0, py);
      context.lineTo(px - wide, py);
      context.moveTo(px + wide, py);
      context.lineTo(canvas.clientWidth, py);
      context.moveTo(px, 0);
      context.lineTo(px, py - high);
      context.moveTo(px, py + high);
      context.lineTo(px, canvas.clientHeight);
      context.rect(px - wide, py - high, 2 * wide, 2 * high);
      context.stroke();
    });
  }

  paintBrush({ x, y, radius, colour }) {
    const { context } = this;
    const [px, py] = this.local(x, y);
    this.twice("#000", colour, 3, 1.5, () => {
      context.beginPath();
      context.arc(px, py, Math.max(1, radius * this.scale), 0, 2 * Math.PI);
      context.stroke();
    });
  }

  /** Stroke a wide line and a narrow one on it, so that it is seen on any ground. */
  twice(under, over, wide, narrow, stroke) {
    const { context } = this;
    context.strokeStyle = under;
    context.lineWidth = wide;
    stroke();
    context.strokeStyle = over;
    context.lineWidth = narrow;
    stroke();
  }
}
