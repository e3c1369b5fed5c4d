// The chosen image, and in it the square that the network will see.

import { $ } from "./dom.js";

const PIXELATED_BELOW = 128; // pixels: of a small image the pixels are shown, not smoothed

let caption = "";
let size = null; // {width, height} in pixels, once the image is loaded
let input = null; // how the chosen model prepares an image, once that is known

export function showPreview(file, name) {
  URL.revokeObjectURL($("picture").src);
  caption = name;
  size = null;
  $("picture").alt = name;
  $("picture").src = URL.createObjectURL(file);
  $("caption").textContent = name;
  $("preview").hidden = false;
  $("figure").hidden = false;
  $("drop-zone").classList.add("filled");
}

export function showRegion(modelInput) {
  input = modelInput;
  if (size) describe();
}

$("picture").addEventListener("load", () => {
  size = storedSize($("picture"));
  $("preview").style.setProperty("--ratio", size.width / size.height);
  $("picture").classList.toggle("pixelated", Math.max(size.width, size.height) < PIXELATED_BELOW);
  describe();
});

$("picture").addEventListener("error", () => {
  $("preview").hidden = true;
  $("caption").textContent = `${caption}: no preview, this browser cannot show it`;
});

/** Pixels of the file, as style.css shows them; naturalWidth is of the image turned by its EXIF data. */
function storedSize(picture) {
  picture.classList.add("unsized");
  const { offsetWidth: width, offsetHeight: height } = picture;
  picture.classList.remove("unsized");
  return { width, height };
}

function describe() {
  const framed = input !== null && frame();
  $("crop").hidden = !framed;
  $("caption").textContent =
    `${caption}, ${size.width} × ${size.height} pixels` + (framed ? "; framed: what the network sees" : "");
}

/** Of the `resize` pixels that the short side becomes, `crop` are kept; false where that is everything. */
function frame() {
  const { width, height } = size;
  const side = (Math.min(width, height) * input.crop) / input.resize;
  $("crop").style.width = `${(100 * side) / width}%`;
  $("crop").style.height = `${(100 * side) / height}%`;
  return side < width || side < height;
}
