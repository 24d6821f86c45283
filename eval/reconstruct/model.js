// The model in three dimensions: points, cameras as pyramids with their photographs, and what each photograph sees.
// World: x right, y up, z towards the viewer; the model lies within about 1 of the origin.

const points = {
  count: data.points.count,
  xyz: unpack(data.points.xyz, Float32Array),
  rgb: unpack(data.points.rgb, Uint8Array),
  error: unpack(data.points.error, Uint8Array), // 255: 4 px and more
  seen: unpack(data.points.seen, Uint8Array), // photographs, 255 and more
};
const cameras = data.cameras.map((camera, i) => ({
  picture: data.pictures[i],
  ...camera, // name, centre, corners (rays to the photograph's corners, from its upper left one clockwise)
  index: unpack(camera.index, Uint32Array), // points that it sees
  at: unpack(camera.at, Uint16Array), // and where: x, y; 65535 is the width, the height
}));
const state = { chosen: null, other: null }; // cameras

// --- vectors and matrices (column by column, as WebGL has them) -----------------------------------------------------

const add = (a, b, s = 1) => [a[0] + s * b[0], a[1] + s * b[1], a[2] + s * b[2]];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const length = a => Math.hypot(a[0], a[1], a[2]);
const unit = a => add([0, 0, 0], a, 1 / (length(a) || 1));
const pointAt = i => [points.xyz[3 * i], points.xyz[3 * i + 1], points.xyz[3 * i + 2]];
const median = values => values.length ? [...values].sort((a, b) => a - b)[values.length >> 1] : 0;

function perspective(fov, aspect, near, far) {
  const f = 1 / Math.tan(fov / 2), depth = near - far;
  return [f / aspect, 0, 0, 0, 0, f, 0, 0, 0, 0, (near + far) / depth, -1, 0, 0, 2 * near * far / depth, 0];
}

function multiply(a, b) {
  return Array.from({ length: 16 }, (_, i) => {
    const row = i % 4, column = i - row;
    return a[row] * b[column] + a[row + 4] * b[column + 1] + a[row + 8] * b[column + 2] + a[row + 12] * b[column + 3];
  });
}

// --- the viewer's own place: it looks at a target from a distance ---------------------------------------------------

const FOV = 0.8;

// All of it in view, but for the outermost fifth of the points and of the cameras.
function home() {
  const sets = [Array.from({ length: points.count }, (_, i) => pointAt(i)), cameras.map(camera => camera.centre)];
  const middles = sets.filter(set => set.length).map(set => [0, 1, 2].map(k => median(set.map(place => place[k]))));
  const target = middles.reduce((sum, middle) => add(sum, middle, 1 / middles.length), [0, 0, 0]);
  const reaches = sets.map(set => set.map(place => length(add(place, target, -1))).sort((a, b) => a - b));
  const radius = Math.max(...reaches.map(reach => reach[Math.floor(0.8 * reach.length)] ?? 0), 0.05);
  return { target, distance: radius / Math.sin(FOV / 2), yaw: 0.45, pitch: 0.35, fov: FOV };
}

let eye = home();

function directions(place) {
  const [sy, cy, sp, cp] = [Math.sin(place.yaw), Math.cos(place.yaw), Math.sin(place.pitch), Math.cos(place.pitch)];
  const back = [sy * cp, sp, cy * cp];
  const right = [cy, 0, -sy];
  return { right, up: cross(back, right), back, position: add(place.target, back, place.distance) };
}

function viewMatrix(place, aspect) {
  const { right, up, back, position } = directions(place);
  const view = [right[0], up[0], back[0], 0, right[1], up[1], back[1], 0, right[2], up[2], back[2], 0,
    -dot(right, position), -dot(up, position), -dot(back, position), 1];
  // A narrow window shows the same width as a square one.
  const fov = aspect < 1 ? 2 * Math.atan(Math.tan(place.fov / 2) / aspect) : place.fov;
  return multiply(perspective(fov, aspect, place.distance * 0.005, place.distance + 50), view);
}

let flight = 0;
function flyTo(place) {
  cancelAnimationFrame(flight);
  const from = eye, start = performance.now();
  const turn = ((place.yaw - from.yaw + Math.PI) % (2 * Math.PI) + 2 * Math.PI) % (2 * Math.PI) - Math.PI;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const step = now => {
    const t = still ? 1 : Math.min(1, (now - start) / 450), s = t * t * (3 - 2 * t);
    const between = name => from[name] + s * (place[name] - from[name]);
    eye = {
      target: from.target.map((x, i) => x + s * (place.target[i] - x)),
      distance: between("distance"), yaw: from.yaw + s * turn, pitch: between("pitch"), fov: between("fov"),
    };
    draw();
    if (t < 1) flight = requestAnimationFrame(step);
  };
  flight = requestAnimationFrame(step);
}

// The place of a camera, looking as it looked; a turn about its own axis is left out.
function throughCamera(camera) {
  const forward = unit(camera.corners.reduce((sum, ray) => add(sum, unit(ray)), [0, 0, 0]));
  const depths = Array.from(camera.index, i => dot(add(pointAt(i), camera.centre, -1), forward));
  const distance = Math.max(median(depths), 0.05);
  const edge = (a, b) => Math.acos(Math.min(1, dot(unit(a), unit(b))));
  return {
    target: add(camera.centre, forward, distance), distance, yaw: Math.atan2(-forward[0], -forward[2]),
    pitch: Math.asin(Math.max(-1, Math.min(1, -forward[1]))), fov: Math.min(2, edge(camera.corners[0], camera.corners[3])),
  };
}

// --- drawing with WebGL ----------------------------------------------------------------------------------------------

const canvas = byId("view");
const gl = canvas.getContext("webgl", { antialias: true });

function program(vertex, fragment) {
  const linked = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(linked, shader);
  }
  gl.bindAttribLocation(linked, 0, "position");
  gl.bindAttribLocation(linked, 1, "value");
  gl.linkProgram(linked);
  const at = name => gl.getUniformLocation(linked, name);
  return { linked, matrix: at("matrix"), size: at("size"), round: at("round"), atlas: at("atlas") };
}

function buffer(values, width, normalised = false) {
  const made = gl.createBuffer();
  gl.bindBuffer(gl.ARRAY_BUFFER, made);
  gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
  return { made, width, type: values instanceof Uint8Array ? gl.UNSIGNED_BYTE : gl.FLOAT, normalised };
}

function drawArrays(mode, used, uniforms, position, value, count) {
  gl.useProgram(used.linked);
  gl.uniformMatrix4fv(used.matrix, false, uniforms.matrix);
  if (used.size) gl.uniform1f(used.size, uniforms.size || 1);
  if (used.round) gl.uniform1f(used.round, mode === gl.POINTS ? 1 : 0);
  [position, value].forEach((b, place) => {
    gl.bindBuffer(gl.ARRAY_BUFFER, b.made);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, b.width, b.type, b.normalised, 0, 0);
  });
  gl.drawArrays(mode, 0, count);
}

let plain, pictured, pointXyz, pointColours, lineXyz, lineColours, numLines, photoXyz, photoUv, numPhotos, atlas;

function prepare() {
  plain = program(
    `attribute vec3 position; attribute vec3 value; uniform mat4 matrix; uniform float size; varying vec3 tint;
     void main() { gl_Position = matrix * vec4(position, 1.0); gl_PointSize = size; tint = value; }`,
    `precision mediump float; varying vec3 tint; uniform float round;
     void main() { if (round > 0.5 && length(gl_PointCoord - 0.5) > 0.5) discard; gl_FragColor = vec4(tint, 1.0); }`);
  pictured = program(
    `attribute vec3 position; attribute vec2 value; uniform mat4 matrix; varying vec2 at;
     void main() { gl_Position = matrix * vec4(position, 1.0); at = value; }`,
    `precision mediump float; varying vec2 at; uniform sampler2D atlas;
     void main() { gl_FragColor = texture2D(atlas, at); }`);
  pointXyz = buffer(points.xyz, 3);
  gl.enable(gl.DEPTH_TEST);
}

// Viridis: from few to many, also for eyes that see no red or green.
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function ramp(share) {
  const x = Math.min(0.9999, Math.max(0, share)) * (RAMP.length - 1), i = Math.floor(x);
  return RAMP[i].map((c, k) => c + (x - i) * (RAMP[i + 1][k] - c));
}

const mostSeen = Math.max(3, Math.min(20, cameras.length));
function baseColour(i, kind) {
  if (kind === "error") return ramp(points.error[i] / 255 * 2); // up to 2 px
  if (kind === "seen") return ramp((points.seen[i] - 2) / (mostSeen - 2));
  return [points.rgb[3 * i], points.rgb[3 * i + 1], points.rgb[3 * i + 2]];
}

const hex = name => { // a colour of the style sheet, #rrggbb, as three bytes
  const value = parseInt(colour(name).slice(1), 16);
  return [value >> 16, value >> 8 & 255, value & 255];
};

// Points of the chosen photograph (and of the pair) keep their colour, the others fade.
function colourPoints() {
  const kind = byId("colouring").value, ground = hex("ground"), colours = new Uint8Array(3 * points.count);
  const kept = shownPoints();
  for (let i = 0; i < points.count; i++) {
    const own = baseColour(i, kind), share = kept && !kept.has(i) ? 0.22 : 1;
    for (let k = 0; k < 3; k++) colours[3 * i + k] = own[k] * share + ground[k] * (1 - share);
  }
  pointColours = buffer(colours, 3, true);
}

function shownPoints() {
  if (state.chosen === null) return null;
  const own = new Set(cameras[state.chosen].index);
  return state.other === null ? own : new Set(cameras[state.other].index.filter(i => own.has(i)));
}

// Cameras are as large as leaves room between neighbours; the slider halves and doubles that.
function cameraSize() {
  const gaps = cameras.map((a, i) => Math.min(...cameras.filter((_, j) => j !== i)
    .map(b => length(add(a.centre, b.centre, -1)))));
  const size = Math.min(0.15, Math.max(0.03, 0.7 * median(gaps.filter(Number.isFinite))));
  return size * 2 ** Number(byId("cameras").value);
}

function corners(camera, size) {
  return camera.corners.map(ray => add(camera.centre, ray, size / length(camera.corners[0])));
}

function placeCameras() {
  const size = cameraSize(), lines = [], tints = [], quads = [], uv = [];
  const across = Math.ceil(Math.sqrt(cameras.length));
  const order = cameras.map((_, i) => i).sort((a, b) => rank(a) - rank(b));
  for (const i of order) {
    const rim = corners(cameras[i], size), tint = hex(["plain", "bad", "accent"][rank(i)]);
    const top = add(add(rim[0], rim[1]), add([0, 0, 0], add(rim[2], rim[3])), -1); // from the lower side to the upper
    const roof = add(add([0, 0, 0], add(rim[0], rim[1]), 0.5), top, 0.12);
    const segments = [[rim[0], rim[1]], [rim[1], rim[2]], [rim[2], rim[3]], [rim[3], rim[0]],
      [rim[0], roof], [roof, rim[1]], ...rim.map(corner => [cameras[i].centre, corner])];
    for (const [a, b] of segments) {
      lines.push(...a, ...b);
      tints.push(...tint, ...tint);
    }
    const [x, y, cell] = [i % across / across, Math.floor(i / across) / across, 1 / across];
    for (const [corner, u, v] of [[0, 0, 0], [1, 1, 0], [2, 1, 1], [0, 0, 0], [2, 1, 1], [3, 0, 1]]) {
      quads.push(...rim[corner]);
      uv.push(x + u * cell, y + v * cell);
    }
  }
  [lineXyz, lineColours, numLines] = [buffer(new Float32Array(lines), 3), buffer(new Uint8Array(tints), 3, true), lines.length / 3];
  [photoXyz, photoUv, numPhotos] = [buffer(new Float32Array(quads), 3), buffer(new Float32Array(uv), 2), quads.length / 3];
}

const rank = i => i === state.chosen ? 2 : i === state.other ? 1 : 0;

// All photographs small in one texture, so that one call draws them.
async function loadAtlas() {
  const across = Math.ceil(Math.sqrt(cameras.length)), side = Math.min(2048, gl.getParameter(gl.MAX_TEXTURE_SIZE));
  const sheet = make("canvas", { width: side, height: side }), context = sheet.getContext("2d"), cell = side / across;
  for (const [i, camera] of cameras.entries()) {
    const picture = await loadPicture(camera.picture);
    context.drawImage(picture, i % across * cell, Math.floor(i / across) * cell, cell, cell);
  }
  atlas = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, atlas);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, sheet);
  gl.generateMipmap(gl.TEXTURE_2D);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
  for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
}

let matrix, waiting = false;
function draw() {
  if (!gl || waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; drawNow(); });
}

function drawNow() {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width || !height) return;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  gl.viewport(0, 0, canvas.width, canvas.height);
  gl.clearColor(...hex("ground").map(c => c / 255), 1);
  gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
  matrix = viewMatrix(eye, width / height);
  const size = Number(byId("dots").value) * ratio;
  drawArrays(gl.POINTS, plain, { matrix, size }, pointXyz, pointColours, points.count);
  if (atlas && byId("photographs").checked) {
    gl.enable(gl.POLYGON_OFFSET_FILL);
    gl.polygonOffset(1, 1);
    drawArrays(gl.TRIANGLES, pictured, { matrix }, photoXyz, photoUv, numPhotos - (isWithin() ? 6 : 0));
    gl.disable(gl.POLYGON_OFFSET_FILL);
  }
  drawArrays(gl.LINES, plain, { matrix }, lineXyz, lineColours, numLines);
}

// Whether the viewer stands in the chosen camera, whose photograph (the last one drawn) would hide the points.
function isWithin() {
  if (state.chosen === null) return false;
  return length(add(directions(eye).position, cameras[state.chosen].centre, -1)) < 0.5 * cameraSize();
}

// --- pointer, fingers, keys -------------------------------------------------------------------------------------------

function onScreen(point) { // CSS pixels and depth; null behind the viewer
  const [x, y, , w] = [0, 1, 2, 3].map(r => matrix[r] * point[0] + matrix[r + 4] * point[1] + matrix[r + 8] * point[2] + matrix[r + 12]);
  return w <= 0 ? null : [(x / w + 1) / 2 * canvas.clientWidth, (1 - y / w) / 2 * canvas.clientHeight, w];
}

// The nearest camera whose photograph or centre lies under a place of the screen, or null.
function cameraAt(x, y) {
  if (!matrix) return null;
  const size = cameraSize();
  let best = null, nearest = Infinity;
  for (const [i, camera] of cameras.entries()) {
    const middle = onScreen(camera.centre), rim = corners(camera, size).map(onScreen);
    if (!middle || rim.includes(null)) continue;
    const sides = rim.map((a, k) => {
      const b = rim[(k + 1) % 4];
      return Math.sign((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]));
    });
    const inside = sides.every(s => s === sides[0]) || Math.hypot(middle[0] - x, middle[1] - y) < 14;
    if (inside && middle[2] < nearest) [best, nearest] = [i, middle[2]];
  }
  return best;
}

function turn(dx, dy) {
  cancelAnimationFrame(flight);
  eye = { ...eye, yaw: eye.yaw - dx, pitch: Math.max(-1.55, Math.min(1.55, eye.pitch + dy)) };
  draw();
}

function move(dx, dy) { // shares of the height of the view
  cancelAnimationFrame(flight);
  const { right, up } = directions(eye), reach = 2 * eye.distance * Math.tan(eye.fov / 2);
  eye = { ...eye, target: add(add(eye.target, right, -dx * reach), up, dy * reach) };
  draw();
}

function zoom(factor) {
  cancelAnimationFrame(flight);
  eye = { ...eye, distance: Math.max(0.01, Math.min(30, eye.distance * factor)) };
  draw();
}

function placeOf(event) {
  const frame = canvas.getBoundingClientRect();
  return [event.clientX - frame.left, event.clientY - frame.top];
}

const fingers = new Map();
let wandered = 0;
canvas.addEventListener("pointerdown", event => {
  canvas.setPointerCapture(event.pointerId);
  if (!fingers.size) wandered = 0;
  fingers.set(event.pointerId, placeOf(event));
  canvas.classList.add("dragging");
});
canvas.addEventListener("pointermove", event => {
  const at = placeOf(event), last = fingers.get(event.pointerId);
  if (!last) return hover(at);
  const [dx, dy] = [at[0] - last[0], at[1] - last[1]], height = canvas.clientHeight;
  wandered += Math.abs(dx) + Math.abs(dy);
  if (fingers.size === 2) {
    const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    const gap = place => Math.hypot(place[0] - other[0], place[1] - other[1]) || 1;
    zoom(gap(last) / gap(at));
    move(dx / 2 / height, dy / 2 / height);
  } else if (event.shiftKey || event.buttons & 6) move(dx / height, dy / height);
  else turn(dx * 0.006, dy * 0.006);
  fingers.set(event.pointerId, at);
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, event => {
    const single = fingers.size === 1;
    fingers.delete(event.pointerId);
    if (!fingers.size) canvas.classList.remove("dragging");
    if (name === "pointerup" && single && wandered < 6) {
      const hit = cameraAt(...placeOf(event));
      if (hit !== null) choose(hit);
    }
  });
}
canvas.addEventListener("pointerleave", () => hover(null));
canvas.addEventListener("contextmenu", event => event.preventDefault());
canvas.addEventListener("wheel", event => {
  event.preventDefault();
  zoom(Math.exp(Math.max(-100, Math.min(100, event.deltaY)) * 0.0015));
}, { passive: false });
canvas.addEventListener("keydown", event => {
  const shift = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
  const step = { ",": -1, ".": 1 }[event.key];
  if (shift) event.shiftKey ? move(shift[0] * 0.05, shift[1] * 0.05) : turn(shift[0] * -0.08, shift[1] * 0.08);
  else if (event.key === "+" || event.key === "=") zoom(0.85);
  else if (event.key === "-") zoom(1 / 0.85);
  else if (event.key === "0" || event.key === "Home") flyTo(home());
  else if (event.key === "Escape") choose(null);
  else if (step) choose(((state.chosen ?? (step > 0 ? -1 : 0)) + step + cameras.length) % cameras.length);
  else return;
  event.preventDefault();
});

function hover(at) {
  const hit = at && cameraAt(...at), tag = byId("tag");
  tag.hidden = hit === null;
  if (hit === null) return;
  tag.textContent = cameras[hit].name;
  tag.style.left = `${Math.min(at[0] + 14, canvas.clientWidth * 0.6)}px`;
  tag.style.top = `${Math.max(at[1] - 30, 4)}px`;
}

// --- the panel beside it -----------------------------------------------------------------------------------------------

function choose(i, other = null) {
  [state.chosen, state.other] = [i, other];
  if (gl) {
    colourPoints();
    placeCameras();
    draw();
  }
  describe();
}

function photoButton(i, caption, pressed, act) {
  const picture = make("img", { src: cameras[i].picture, alt: "", loading: "lazy" });
  const button = make("button", { type: "button", title: cameras[i].name, onclick: act }, picture,
    make("span", {}, cameras[i].name), make("span", { className: "soft" }, caption));
  button.setAttribute("aria-pressed", pressed);
  return button;
}

function describe() {
  const panel = byId("about"), i = state.chosen;
  if (i === null) {
    const tiles = cameras.map((camera, k) => photoButton(k, plural(camera.index.length, "point"), false, () => choose(k)));
    panel.replaceChildren(make("h2", {}, plural(cameras.length, "photograph")),
      make("p", { className: "soft" }, "Choose one, here or in the model, to see its points and its matches."),
      make("div", { className: "photos" }, ...tiles));
    return;
  }
  const own = new Set(cameras[i].index);
  const partners = cameras.map((camera, k) => [k, k === i ? 0 : camera.index.reduce((n, p) => n + own.has(p), 0)])
    .filter(([, shared]) => shared).sort((a, b) => b[1] - a[1]);
  const name = state.other === null ? cameras[i].name : `${cameras[i].name} and ${cameras[state.other].name}`;
  const said = state.other === null ? `${plural(own.size, "point")} of the model seen in this photograph (circles).`
    : `${plural(shownPoints().size, "point")} of the model seen in both.`;
  const picture = make("canvas", { id: "picture" });
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", `${name}: ${said}`);
  const buttons = [
    make("button", { type: "button", onclick: () => choose(null) }, "← all photographs"),
    make("button", { type: "button", onclick: () => flyTo(throughCamera(cameras[i])) }, "look from here"),
  ];
  if (state.other !== null) buttons.push(make("button", { type: "button", onclick: () => choose(i) }, "this one alone"));
  const tiles = partners.map(([k, shared]) =>
    photoButton(k, `${counted(shared)} shared`, k === state.other, () => choose(i, k === state.other ? null : k)));
  panel.replaceChildren(make("div", { className: "row" }, ...buttons), make("h2", {}, name), picture,
    make("p", { className: "soft" }, said), make("h3", {}, `Matches with ${plural(partners.length, "photograph")}`),
    make("div", { className: "photos" }, ...tiles));
  panel.parentElement.scrollTop = 0;
  drawPicture();
}

// The chosen photograph with its points; of a pair both, with lines between them.
async function drawPicture() {
  const picture = byId("picture"), shown = [state.chosen, state.other].filter(k => k !== null);
  if (!picture) return;
  const images = await Promise.all(shown.map(k => loadPicture(cameras[k].picture)));
  if (byId("picture") !== picture) return;
  const places = arrange(images, picture.parentElement.clientWidth, Math.max(260, window.innerHeight * 0.62));
  const context = fitted(picture, Math.max(...places.map(p => p[0] + p[2])), Math.max(...places.map(p => p[1] + p[3])));
  images.forEach((image, n) => context.drawImage(image, ...places[n]));
  const ends = shown.map((k, n) => new Map(Array.from(cameras[k].index, (point, row) => [point, [
    places[n][0] + cameras[k].at[2 * row] / 65535 * places[n][2],
    places[n][1] + cameras[k].at[2 * row + 1] / 65535 * places[n][3]]])));
  const common = [...ends[0].keys()].filter(point => ends.every(at => at.has(point)));
  const every = shown.length === 1 ? 1 : Math.max(1, common.length / 250);
  for (let n = 0; n < common.length; n += every) {
    const point = common[Math.floor(n)], line = ends.map(at => at.get(point));
    context.strokeStyle = shown.length === 1 ? "#56f0b0" : `hsl(${point * 47 % 360} 85% 60%)`;
    context.beginPath();
    for (const [x, y] of line) {
      context.moveTo(x + 2, y);
      context.arc(x, y, 2, 0, 2 * Math.PI);
    }
    if (line.length === 2) {
      context.moveTo(...line[0]);
      context.lineTo(...line[1]);
    }
    context.stroke();
  }
}

// --- start ---------------------------------------------------------------------------------------------------------------

function colouring() {
  const kind = byId("colouring").value, scale = byId("scale"), [low, bar, high] = scale.children;
  scale.hidden = kind === "photograph";
  [low.textContent, high.textContent] = kind === "error" ? ["0 px", "2 px and more"] : ["2", `${mostSeen} and more`];
  bar.style.background = `linear-gradient(to right, ${RAMP.map(c => `rgb(${c})`)})`;
  colourPoints();
  draw();
}

const touch = matchMedia("(pointer: coarse)").matches;
byId("hint").textContent = touch ? "Drag: turn. Two fingers: move and zoom. Tap a camera."
  : "Drag: turn. Shift or right button: move. Wheel: zoom. Click a camera. Keys: arrows, + − 0, comma and full stop.";
byId("closer").onclick = () => zoom(0.75);
byId("farther").onclick = () => zoom(1 / 0.75);
byId("reset").onclick = () => flyTo(home());
if (gl) {
  prepare();
  byId("colouring").oninput = colouring;
  byId("dots").oninput = draw;
  byId("photographs").oninput = draw;
  byId("cameras").oninput = () => { placeCameras(); draw(); };
  loadAtlas().then(draw);
} else {
  byId("hint").textContent = "This browser has no WebGL: the model is not drawn; photographs and matches are in the list.";
}
// An address that ends in #NAME, or #NAME&NAME, opens with that photograph or pair.
const named = location.hash.slice(1).split("&").map(text => cameras.findIndex(c => c.name === decodeURIComponent(text)));
const redraw = () => { draw(); drawPicture(); };
new ResizeObserver(redraw).observe(byId("stage"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => choose(state.chosen, state.other));
byId("dots").value = Math.min(6, Math.max(2, 160 / Math.sqrt(points.count)));
choose(...named.map(i => i < 0 ? null : i).slice(0, 2));
