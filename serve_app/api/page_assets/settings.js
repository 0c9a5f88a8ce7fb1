// The settings beside the pictures: what will be asked of the service.

const SCORE_HINTS = {
  "": "Calibrated where the vocabulary has a calibration, else sigmoid, unless the service is set otherwise.",
  sigmoid: "The model’s own probability. A right tag may well have a few hundredths.",
  calibrated: "After a line fitted for each tag, so that one threshold fits all.",
  margin: "0.5 is as likely as nothing in particular.",
  softmax: "Shares that sum to 1 over all tags: for exactly one right label.",
  logit: "The bare logit, which may be any number.",
};
const TYPING_PAUSE_MS = 600;

export class Settings {
  /** Read the settings' controls below `root`; `changed` is called when pictures have to be tagged again. */
  constructor(root, changed) {
    this.find = (selector) => root.querySelector(selector);
    this.changed = changed;
    this.vocabularies = [];
    this.asked = "";
    for (const control of root.querySelectorAll("select, input")) control.addEventListener("change", () => this.settle());
    const labels = this.find("#labels");
    labels.addEventListener("input", () => this.settleSoon());
    labels.addEventListener("change", () => this.settle());
    this.settle();
  }

  get values() {
    const typed = this.find("#labels").value.split(/[,\n]/).map((label) => label.trim());
    return {
      labels: [...new Set(typed.filter(Boolean))],
      vocabulary: this.find("#vocabulary").value,
      score: this.find("#score").value,
      quality: this.find("input[name=quality]:checked").value,
    };
  }

  /** The vocabulary that holds, as `GET /v1/vocabularies` lists it; undefined for own labels. */
  get vocabulary() {
    const { labels, vocabulary } = this.values;
    return labels.length ? undefined : this.vocabularies.find((card) => (vocabulary ? card.name === vocabulary : card.default));
  }

  showVocabularies(cards) {
    this.vocabularies = cards;
    const options = cards.map((card) => new Option(`${card.name} (${card.tags.toLocaleString("en")} tags)`, card.default ? "" : card.name));
    const select = this.find("#vocabulary");
    const chosen = select.value;
    select.replaceChildren(...options);
    if (cards.some((card) => card.name === chosen)) select.value = chosen;
    this.settle();
  }

  settleSoon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.settle(), TYPING_PAUSE_MS);
  }

  /** Offer what goes together, and tell of a change if there is one. */
  settle() {
    clearTimeout(this.timer);
    const own = this.values.labels.length > 0;
    this.find("#vocabulary").disabled = own;
    const calibrated = this.find("#score option[value=calibrated]");
    calibrated.disabled = own || !this.vocabulary?.calibrated;
    if (calibrated.disabled && calibrated.selected) this.find("#score").value = "";
    this.find("#score-hint").textContent = SCORE_HINTS[this.find("#score").value];
    const asked = JSON.stringify(this.values);
    if (asked === this.asked) return;
    this.asked = asked;
    this.changed();
  }
}
