// What the reader does, and what follows from it.

import { RequestError, classify, classifyUrl, fetchCards, fetchSample, mediaType, sampleUrl } from "./api.js";
import { apiKey, askForKey, onKeyChange } from "./apikey.js";
import { curlCommand } from "./curl.js";
import { $, element } from "./dom.js";
import { showPreview, showRegion } from "./preview.js";
import { onRetry, showAnswer, showCancelled, showFailure, showRunning } from "./result.js";
import { showCard, showNoCard } from "./views.js";

const TOP_K = 5;

let cards = new Map(); // by name
let source = { name: "photo.jpg", type: "image/jpeg" }; // of the image, for the command
let file = null; // the image itself
let running = null; // the AbortController of the request under way
let again = null; // what runs once more on "Try again"

// Choosing an image

$("file").addEventListener("change", (event) => {
  const [chosen] = event.target.files;
  if (chosen) takeFile(chosen);
  event.target.value = ""; // the same file may be chosen again
});

for (const button of document.querySelectorAll("[data-sample]")) {
  button.addEventListener("click", () => takeSample(button.dataset.sample, button.firstElementChild.alt));
}

document.addEventListener("paste", (event) => {
  if (event.target === $("key")) return;
  const [pasted] = event.clipboardData.files;
  if (pasted) takeFile(pasted, `The command takes the pasted image from a file that you save as ${pasted.name}.`);
  else refuse("There is no image in the clipboard.");
});

// The whole window takes a drop: one that misses the frame would leave the page.
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop-zone").classList.toggle("over", event.dataTransfer.types.includes("Files"));
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) $("drop-zone").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop-zone").classList.remove("over");
  const { files } = event.dataTransfer;
  if (files.length === 1) takeFile(files[0]);
  else refuse(files.length ? "Drop one image at a time." : "What was dropped is not a file.");
});

function takeFile(taken, note = "") {
  setImage(taken, taken.name, { name: taken.name, type: mediaType(taken), note });
  run(taken.name, async () => taken);
}

function takeSample(index, label) {
  const note = "The first half fetches the sample from this server, the second sends it back.";
  run(`the sample “${label}”`, async (signal) => {
    const sample = await fetchSample(index, { signal });
    setImage(sample, `Sample “${label}”`, { url: sampleUrl(index).href, type: sample.type, note });
    return sample;
  });
}

function setImage(taken, caption, from) {
  file = taken;
  source = from;
  showPreview(taken, caption);
  showCommand();
}

function refuse(message) {
  giveUp();
  showFailure(new RequestError(message));
}

// Classifying it

/** Classify the image that `open` gives; whatever is running is given up. */
async function run(name, open) {
  giveUp();
  const controller = new AbortController();
  running = controller;
  again = () => run(name, open);
  showRunning(`Classifying ${name}…`);
  try {
    const image = await open(controller.signal);
    const options = { topK: TOP_K, model: $("model").value, key: apiKey(), signal: controller.signal };
    const answer = await classify(image, options);
    if (running === controller) showAnswer(answer);
  } catch (error) {
    if (running === controller) fail(error);
  } finally {
    if (running === controller) running = null;
  }
}

function giveUp() {
  running?.abort();
  running = null;
}

function fail(error) {
  const { status, retryAfter } = error;
  const passing = status === 0 || status === 429 || status >= 500;
  showFailure(error, { retryIn: passing ? (retryAfter ?? 0) : null });
  if (status === 401) askForKey(error.message);
}

$("cancel").addEventListener("click", () => {
  giveUp();
  showCancelled();
});

onRetry(() => again());

onKeyChange(async (isNew) => {
  showCommand();
  if (!isNew) return;
  await loadCards(); // first, so that the request names its model
  again?.();
});

// The models

$("model").addEventListener("change", () => {
  showModel();
  if (file) run(file.name, async () => file);
});

async function loadCards() {
  try {
    setCards(await fetchCards({ key: apiKey() }));
  } catch (error) {
    showNoCard($("card"), `The card could not be loaded: ${error.message}`);
    if (error.status === 401) askForKey(error.message);
  }
}

function setCards(list) {
  cards = new Map(list.map((card) => [card.name, card])); // of several versions, the last answers
  const chosen = $("model").value;
  $("model").replaceChildren(...[...cards.keys()].map((name) => element("option", { text: name })));
  if (cards.has(chosen)) $("model").value = chosen;
  $("model-choice").hidden = cards.size < 2;
  showModel();
}

function showModel() {
  const card = cards.get($("model").value);
  if (card) showCard($("card"), card);
  else showNoCard($("card"), "No model is served at the moment.");
  showRegion(card?.input ?? null);
  showCommand();
}

// The command

function showCommand() {
  const url = classifyUrl({ topK: TOP_K, model: $("model").value }).href;
  $("curl").textContent = curlCommand({ url, source, withKey: apiKey() !== "" });
  $("curl-note").textContent = source.note ?? "";
}

// Browsers let a page write to the clipboard where it came over HTTPS or from this machine.
$("copy").hidden = !navigator.clipboard;
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("curl").textContent);
    $("copied").textContent = "Copied";
  } catch {
    $("copied").textContent = "The browser does not allow it: select the command and copy it.";
  }
  setTimeout(() => $("copied").replaceChildren(), 3000);
});

showCommand();
loadCards();
