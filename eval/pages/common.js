// What the scripts of the pages share.
"use strict";

const byId = id => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);

// Base64 of little-endian numbers to a typed array; a byte has no order.
function unpack(text, Kind) {
  return new Kind(Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer);
}

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const counted = number => number.toLocaleString("en");
const plural = (number, one, many = `${one}s`) => `${counted(number)} ${number === 1 ? one : many}`;

// An element with attributes or properties and children (texts are texts, never markup).
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function loadPicture(address) {
  const picture = new Image();
  picture.src = address;
  return picture.decode().then(() => picture);
}

// A canvas as many device pixels wide as it is shown; returns its context, scaled to CSS pixels.
function fitted(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

// Photographs one above the other or side by side, whichever shows them larger: [x, y, width, height] each.
function arrange(images, width, height) {
  const gap = 6, layouts = [false, true].slice(0, images.length).map(beside => {
    const sides = images.map(image => [image.naturalWidth, image.naturalHeight]);
    const along = sides.reduce((sum, side) => sum + side[beside ? 0 : 1], 0);
    const across = Math.max(...sides.map(side => side[beside ? 1 : 0]));
    const room = gap * (images.length - 1);
    const scale = beside ? Math.min((width - room) / along, height / across)
      : Math.min(width / across, (height - room) / along);
    let at = 0;
    return [scale, sides.map(([w, h]) => {
      const place = beside ? [at, 0, w * scale, h * scale] : [0, at, w * scale, h * scale];
      at += (beside ? w : h) * scale + gap;
      return place;
    })];
  });
  return layouts.sort((a, b) => b[0] - a[0])[0][1];
}
