// Converts scores to positions on an axis, and slider positions to thresholds.
// A threshold is always a probability, as in requests to the service. With 0, every tag is shown.

export const SLIDER_STEPS = 100;
export const FALLBACK_THRESHOLD = 0.01; // the service's default
const MIN_SCORE = 1e-5; // a correct tag may have a score of 0.00002
const DECADES = 5;
const TICK_TEXTS = ["0.00001", "", "0.001", "0.01", "0.1", "1"]; // the second text would overlap the first
const LOGIT_BOUND = 12;

const clamp = (value) => Math.min(1, Math.max(0, value));
const sigmoid = (logit) => 1 / (1 + Math.exp(-logit));
const logitOf = (p) => (p >= 1 ? Infinity : Math.log(p / (1 - p)));

/** Return a probability with enough digits to distinguish 0.00002 from 0.00005, and 0.9997 from 1. */
function probabilityText(p) {
  if (p >= 0.99995) return p >= 1 ? "1" : ">0.9999";
  if (p >= 0.9995) return p.toFixed(4);
  if (p >= 0.1) return p.toFixed(3);
  if (p < 1e-7) return p > 0 ? "<0.0000001" : "0";
  return p.toFixed(1 - Math.floor(Math.log10(p)));
}

const probabilities = {
  ticks: TICK_TEXTS.map((text, i) => ({ position: i / DECADES, text })),
  positionOf: (score) => (score > MIN_SCORE ? clamp(1 + Math.log10(score) / DECADES) : 0),
  positionOfThreshold: (p) => probabilities.positionOf(p),
  thresholdAtPosition: (position) => (position > 0 ? Number((10 ** (DECADES * (position - 1))).toPrecision(2)) : 0),
  passes: (score, p) => score >= p,
  text: probabilityText,
  thresholdText: (p) => (p > 0 ? String(p < 1e-4 ? p.toFixed(6) : p) : "0"),
};

const logits = {
  ticks: [-12, -6, 0, 6, 12].map((logit, i) => ({ position: i / 4, text: String(logit).replace("-", "−") })),
  positionOf: (score) => clamp((score + LOGIT_BOUND) / (2 * LOGIT_BOUND)),
  positionOfThreshold: (p) => logits.positionOf(logitOf(p)),
  thresholdAtPosition: (position) => (position > 0 ? sigmoid(Number((LOGIT_BOUND * (2 * position - 1)).toFixed(2))) : 0),
  passes: (score, p) => score >= logitOf(p),
  text: (score) => score.toFixed(2).replace("-", "−"),
  thresholdText: (p) => (p > 0 ? logits.text(logitOf(p)) : "any"),
};

/** Return the axis of a kind of score: linear for logits, which can be any number, and logarithmic for all others. */
export const scaleOf = (score) => (score === "logit" ? logits : probabilities);

/** Draw the ticks of an axis into an element. */
export function drawTicks(element, scale) {
  element.replaceChildren(
    ...scale.ticks.map(({ position, text }) => {
      const tick = document.createElement("span");
      tick.textContent = text;
      tick.style.setProperty("--position", position);
      return tick;
    }),
  );
}
