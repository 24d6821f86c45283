// Two photographs with their matches: which ones by a slider over the ratio, one of them by pointer or keys.

const INLIER = "#19e0a0", OUTLIER = "#ff8a3d"; // both bright: they lie on photographs in either scheme
const BINS = 40;
const at = unpack(data.at, Float32Array); // x0, y0, x1, y1 in pixels of the photographs
const ratios = unpack(data.ratios, Float32Array);
const errors = unpack(data.errors, Float32Array); // pixels; NaN without a geometry
const agrees = unpack(data.agrees, Uint8Array);
const byRatio = Array.from(ratios.keys()).sort((a, b) => ratios[a] - ratios[b]);
const canvas = byId("view"), slider = byId("ratio");
let images = [], frames = [], shown = [], chosen = null, fixed = false;

const limit = () => Number(slider.value);
const isShown = m => ratios[m] <= limit() + 1e-6 && byId(agrees[m] ? "inliers" : "outliers").checked;
const percent = (part, all) => all ? ` (${Math.round(100 * part / all)} %)` : "";

// Where an end (0 or 1) of a match lies on the canvas.
function onCanvas(end, x, y) {
  const [left, top, width, height] = frames[end], [w, h] = data.sizes[end];
  return [left + (x + 0.5) / w * width, top + (y + 0.5) / h * height];
}

const line = m => [0, 1].map(end => onCanvas(end, at[4 * m + 2 * end], at[4 * m + 2 * end + 1]));

function strokeMatch(context, m, width) {
  const [a, b] = line(m);
  context.lineWidth = width;
  context.strokeStyle = agrees[m] ? INLIER : OUTLIER;
  context.setLineDash(agrees[m] ? [] : [6, 4]);
  context.beginPath();
  context.moveTo(...a);
  context.lineTo(...b);
  context.stroke();
  context.setLineDash([]);
  for (const [x, y] of [a, b]) {
    context.beginPath();
    context.arc(x, y, 1.5 + width, 0, 2 * Math.PI);
    context.stroke();
  }
}

// The line a x + b y + c = 0 of a photograph, within its frame.
function strokeEpipolar(context, end, [a, b, c]) {
  const [w, h] = data.sizes[end];
  const ends = Math.abs(b) > Math.abs(a) ? [[0, -c / b], [w, -(a * w + c) / b]] : [[-c / a, 0], [-(b * h + c) / a, h]];
  context.save();
  context.beginPath();
  context.rect(...frames[end]);
  context.clip();
  context.strokeStyle = "#ffffff";
  context.lineWidth = 1.5;
  context.beginPath();
  ends.forEach(([x, y], k) => context[k ? "lineTo" : "moveTo"](...onCanvas(end, x, y)));
  context.stroke();
  context.restore();
}

function draw() {
  if (!images.length) return;
  frames = arrange(images, byId("stage").clientWidth, Math.max(280, window.innerHeight * 0.6));
  const context = fitted(canvas, Math.max(...frames.map(f => f[0] + f[2])), Math.max(...frames.map(f => f[1] + f[3])));
  images.forEach((image, end) => context.drawImage(image, ...frames[end]));
  shown = byRatio.filter(isShown);
  context.globalAlpha = chosen !== null ? 0.18 : shown.length > 600 ? 0.45 : 0.8;
  for (const side of [0, 1]) for (const m of shown) if (agrees[m] === side) strokeMatch(context, m, 1);
  context.globalAlpha = 1;
  if (chosen !== null) {
    const [x0, y0, x1, y1] = at.subarray(4 * chosen, 4 * chosen + 4), F = data.fundamental;
    if (F) {
      strokeEpipolar(context, 1, F.map(row => row[0] * x0 + row[1] * y0 + row[2]));
      strokeEpipolar(context, 0, [0, 1, 2].map(k => F[0][k] * x1 + F[1][k] * y1 + F[2][k]));
    }
    strokeMatch(context, chosen, 3);
  }
}

// What a photograph shows around a match, enlarged: 1/12 of its longer side.
function drawCrops() {
  [...byId("crops").children].forEach((crop, end) => {
    const context = crop.getContext("2d"), image = images[end], [w, h] = data.sizes[end];
    context.clearRect(0, 0, crop.width, crop.height);
    if (chosen === null || !image) return;
    const scale = image.naturalWidth / w, side = Math.max(w, h) / 12 * scale;
    const [x, y] = [0, 1].map(k => (at[4 * chosen + 2 * end + k] + 0.5) * scale);
    context.drawImage(image, x - side / 2, y - side / 2, side, side, 0, 0, crop.width, crop.height);
    context.strokeStyle = agrees[chosen] ? INLIER : OUTLIER;
    context.lineWidth = 3;
    context.beginPath();
    context.arc(crop.width / 2, crop.height / 2, 12, 0, 2 * Math.PI);
    context.stroke();
  });
}

// Matches by ratio, inliers below and the others on top; what the slider leaves out is pale.
function drawBars() {
  const bars = byId("bars"), width = bars.clientWidth, height = bars.clientHeight, context = fitted(bars, width, height);
  bars.style.width = "100%";
  const low = Number(slider.min), span = Number(slider.max) - low || 1, counts = [new Array(BINS).fill(0), new Array(BINS).fill(0)];
  ratios.forEach((ratio, m) => counts[agrees[m]][Math.max(0, Math.min(BINS - 1, Math.floor((ratio - low) / span * BINS)))]++);
  const most = Math.max(1, ...counts[0].map((n, k) => n + counts[1][k]));
  for (let k = 0; k < BINS; k++) {
    let bottom = height;
    context.globalAlpha = low + (k + 0.5) / BINS * span <= limit() ? 1 : 0.25;
    for (const [side, name] of [[1, "good"], [0, "bad"]]) {
      const tall = counts[side][k] / most * (height - 2);
      context.fillStyle = colour(name);
      context.fillRect(k / BINS * width + 0.5, bottom - tall, width / BINS - 1, tall);
      bottom -= tall;
    }
  }
}

function describe() {
  const within = byRatio.filter(m => ratios[m] <= limit() + 1e-6), good = within.filter(m => agrees[m]).length;
  byId("count").textContent = plural(within.length, "match", "matches") +
    (data.geometry ? `, ${counted(good)} agree${percent(good, within.length)}` : "");
  byId("shown").textContent = limit().toFixed(2) + (data.ratio !== null && Math.abs(limit() - data.ratio) < 0.005 ? " (of the command)" : "");
  const names = data.geometry ? [`agree with the ${data.geometry}`, "do not"] : ["", "no geometry was estimated"];
  [["inliers", good], ["outliers", within.length - good]].forEach(([id, count], k) => {
    byId(id).parentElement.lastElementChild.textContent = `${counted(count)} ${names[k]}`;
    byId(id).parentElement.hidden = !names[k];
  });
  byId("said").textContent = chosen === null ? "Point at a line, tap it, or go from match to match by the buttons or the arrow keys."
    : `Ratio ${ratios[chosen].toFixed(2)}` + (Number.isNaN(errors[chosen]) ? "." : `; ${errors[chosen].toFixed(1)} px from ` +
      (data.fundamental ? "its epipolar line (white)" : "where the homography takes it") +
      `: ${agrees[chosen] ? "an inlier" : "an outlier"} at ${data.threshold} px.`);
}

function choose(m, isFixed) {
  [chosen, fixed] = [m, isFixed && m !== null];
  draw();
  drawCrops();
  describe();
}

// The match whose end lies nearest, within 14 pixels, or whose line does, within 6.
function matchAt(x, y) {
  let best = null, nearest = Infinity;
  for (const m of shown) {
    const [a, b] = line(m), [dx, dy] = [b[0] - a[0], b[1] - a[1]];
    const ends = Math.min(Math.hypot(x - a[0], y - a[1]), Math.hypot(x - b[0], y - b[1])) / 14;
    const t = Math.max(0, Math.min(1, ((x - a[0]) * dx + (y - a[1]) * dy) / (dx * dx + dy * dy || 1)));
    const away = Math.min(ends, Math.hypot(x - a[0] - t * dx, y - a[1] - t * dy) / 6);
    if (away <= 1 && away < nearest) [best, nearest] = [m, away];
  }
  return best;
}

function placeOf(event) {
  const frame = canvas.getBoundingClientRect();
  return [event.clientX - frame.left, event.clientY - frame.top];
}

function step(by) {
  if (!shown.length) return;
  const here = shown.indexOf(chosen);
  choose(shown[here < 0 ? (by > 0 ? 0 : shown.length - 1) : (here + by + shown.length) % shown.length], true);
}

canvas.addEventListener("pointermove", event => {
  if (event.pointerType === "touch" || fixed) return;
  const m = matchAt(...placeOf(event));
  if (m !== chosen) choose(m, false);
});
canvas.addEventListener("pointerleave", () => { if (!fixed && chosen !== null) choose(null, false); });
canvas.addEventListener("click", event => choose(matchAt(...placeOf(event)), true));
canvas.addEventListener("keydown", event => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by) step(by);
  else if (event.key === "Escape") choose(null, false);
  else return;
  event.preventDefault();
});
byId("before").onclick = () => step(-1);
byId("after").onclick = () => step(1);

function update() {
  if (chosen !== null && !isShown(chosen)) [chosen, fixed] = [null, false];
  draw();
  drawBars();
  drawCrops();
  describe();
}

const least = ratios.length ? Math.floor(ratios[byRatio[0]] * 100) / 100 : 0;
Object.assign(slider, { min: least, max: 1, step: 0.01 });
slider.value = data.ratio ?? 1;
byId("least").textContent = least.toFixed(2);
byId("most").textContent = "1.00";
document.querySelector("i.inlier").style.borderColor = INLIER;
document.querySelector("i.outlier").style.borderColor = OUTLIER;
for (const id of ["ratio", "inliers", "outliers"]) byId(id).addEventListener("input", update);
new ResizeObserver(update).observe(byId("stage"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
Promise.all(data.pictures.map(loadPicture)).then(loaded => { images = loaded; update(); });
