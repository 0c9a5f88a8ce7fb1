// From scores to places on an axis, and from the slider to a threshold.
// A threshold is always a probability, as the service takes it; 0 shows every tag.

export const SLIDER_STEPS = 100;
export const FALLBACK_THRESHOLD = 0.01; // the schema's default
const LEAST = 1e-5; // a right tag may well have a score of 0.00002
const DECADES = 5;
const TICK_TEXTS = ["0.00001", "", "0.001", "0.01", "0.1", "1"]; // the second would not fit beside the first
const LOGIT_BOUND = 12;

const clamp = (value) => Math.min(1, Math.max(0, value));
const sigmoid = (logit) => 1 / (1 + Math.exp(-logit));
const logitOf = (p) => (p >= 1 ? Infinity : Math.log(p / (1 - p)));

/** A probability as text: enough digits to tell 0.00002 from 0.00005, and 0.9997 from 1. */
function probabilityText(p) {
  if (p >= 0.99995) return p >= 1 ? "1" : ">0.9999";
  if (p >= 0.9995) return p.toFixed(4);
  if (p >= 0.1) return p.toFixed(3);
  if (p < 1e-7) return p > 0 ? "<0.0000001" : "0";
  return p.toFixed(1 - Math.floor(Math.log10(p)));
}

const probabilities = {
  ticks: TICK_TEXTS.map((text, at) => ({ at: at / DECADES, text })),
  placeOf: (score) => (score > LEAST ? clamp(1 + Math.log10(score) / DECADES) : 0),
  placeOfThreshold: (p) => probabilities.placeOf(p),
  thresholdAt: (place) => (place > 0 ? Number((10 ** (DECADES * (place - 1))).toPrecision(2)) : 0),
  passes: (score, p) => score >= p,
  text: probabilityText,
  thresholdText: (p) => (p > 0 ? String(p < 1e-4 ? p.toFixed(6) : p) : "0"),
};

const logits = {
  ticks: [-12, -6, 0, 6, 12].map((logit, at) => ({ at: at / 4, text: String(logit).replace("-", "−") })),
  placeOf: (score) => clamp((score + LOGIT_BOUND) / (2 * LOGIT_BOUND)),
  placeOfThreshold: (p) => logits.placeOf(logitOf(p)),
  thresholdAt: (place) => (place > 0 ? sigmoid(Number((LOGIT_BOUND * (2 * place - 1)).toFixed(2))) : 0),
  passes: (score, p) => score >= logitOf(p),
  text: (score) => score.toFixed(2).replace("-", "−"),
  thresholdText: (p) => (p > 0 ? logits.text(logitOf(p)) : "any"),
};

/** Return the axis of a kind of score: logarithmic for probabilities and shares, linear for logits, which may be any number. */
export const scaleOf = (score) => (score === "logit" ? logits : probabilities);

/** Put an axis's ticks into an element. */
export function drawTicks(element, scale) {
  element.replaceChildren(
    ...scale.ticks.map(({ at, text }) => {
      const tick = document.createElement("span");
      tick.textContent = text;
      tick.style.setProperty("--at", at);
      return tick;
    }),
  );
}
