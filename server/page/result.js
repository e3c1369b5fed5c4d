// The panel of the result, in one state at a time: running, answered, failed, cancelled.

import { RequestError } from "./api.js";
import { $, element, hide } from "./dom.js";
import { percent, showBars, showTiming } from "./views.js";

let countdown = 0;

export function showRunning(message) {
  const before = !$("answer").hidden; // the answer before stays, dimmed, so that nothing jumps
  clear();
  $("answer").hidden = !before;
  $("running").hidden = false;
  $("result").setAttribute("aria-busy", "true");
  $("status").textContent = message;
}

export function showAnswer({ document: answer, milliseconds }) {
  const [predictions] = answer.predictions;
  if (predictions.error) throw new RequestError(predictions.error);
  const [best] = predictions;
  clear();
  $("status").textContent = `${best.label}, ${percent(best.probability)}`;
  $("status").classList.add("visually-hidden"); // said aloud; the eye has the first bar
  showBars($("bars"), predictions);
  showTiming($("timing"), answer.timing_ms, milliseconds);
  $("json").textContent = JSON.stringify(answer, null, 2);
  $("answer").hidden = false;
  reveal();
}

/** `retryIn` seconds from now the same may be tried again; null where that is no use. */
export function showFailure(error, { retryIn = null } = {}) {
  clear();
  const known = error instanceof RequestError;
  if (!known) console.warn(error);
  const title = error.status ? `The server answered ${error.status}` : "That did not work";
  const message = known ? error.message : "The answer is not what this page expects.";
  $("error").replaceChildren(element("strong", { text: title }), element("p", { class: "message", text: message }));
  if (retryIn !== null) offerRetry(retryIn);
  reveal();
}

export function showCancelled() {
  clear();
  $("status").textContent = "Cancelled.";
  offerRetry(0);
  $("retry").focus();
}

export function onRetry(retry) {
  $("retry").addEventListener("click", () => {
    if ($("retry").getAttribute("aria-disabled") !== "true") retry();
  });
}

function clear() {
  clearInterval(countdown);
  $("placeholder").hidden = true;
  $("status").textContent = "";
  $("status").classList.remove("visually-hidden");
  $("error").replaceChildren();
  $("answer").hidden = true;
  $("result").removeAttribute("aria-busy");
  hide($("running"), $("result"));
  hide($("retry"), $("result"));
}

// In one column the result may be far below what was pressed.
function reveal() {
  if ($("result").getBoundingClientRect().top > 0.75 * innerHeight) $("result").scrollIntoView();
}

function offerRetry(wait) {
  const button = $("retry");
  const until = performance.now() + 1000 * wait;
  const tick = () => {
    const left = Math.ceil((until - performance.now()) / 1000);
    button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    button.setAttribute("aria-disabled", String(left > 0)); // and not disabled, which would lose the focus
    if (left <= 0) clearInterval(countdown);
  };
  countdown = setInterval(tick, 250);
  tick();
  button.hidden = false;
}
