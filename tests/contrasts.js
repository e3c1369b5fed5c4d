// The contrast ratios of all texts that can be seen, of the edges of controls and of the first bar.
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (color) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const luminance = (color) => {
  const [r, g, b] = rgba(color).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ratio = (a, b) => {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
};
const ground = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const color = getComputedStyle(e).backgroundColor;
    if (rgba(color)[3] === 255) return color;
  }
  return "white";
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
  found.push(["text", walker.currentNode.data.trim(), ratio(getComputedStyle(element).color, ground(element))]);
}
const borders = "button:not(.link), label.button, select, input:not([type=file]), .drop-zone:not(.filled)";
for (const element of document.querySelectorAll(borders)) {
  if (!element.checkVisibility()) continue;
  found.push(["border", element.id, ratio(getComputedStyle(element).borderTopColor, ground(element.parentElement))]);
}
for (const bar of document.querySelectorAll("#bars li:first-child .fill")) {
  found.push(["bar", "", ratio(getComputedStyle(bar).backgroundColor, ground(bar.parentElement))]);
}
return found;
