// The settings beside the images, from which requests to the service are built.

const SCORE_HINTS = {
  "": "Calibrated if the vocabulary has a calibration, and otherwise sigmoid, unless the service is configured differently.",
  sigmoid: "The model’s probability. A correct tag may have a probability of only 0.02.",
  calibrated: "Corrected by a line that is fitted for each tag, so that one threshold works for all tags.",
  margin: "0.5 means that the tag is as likely as a neutral prompt such as “a photo.”.",
  softmax: "Scores that sum to 1 over all tags. Choose it if exactly one label is correct.",
  logit: "The raw logit, which can be any number.",
};
const TYPING_PAUSE_MS = 600;

export class Settings {
  /** Read the controls below `root`, and call `onChange` when images have to be tagged again. */
  constructor(root, onChange) {
    this.find = (selector) => root.querySelector(selector);
    this.onChange = onChange;
    this.vocabularies = [];
    this.lastValues = "";
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

  /** The selected vocabulary, as `GET /v1/vocabularies` lists it; undefined if the user entered labels. */
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

  /** Disable options that cannot be combined, and call `onChange` if a value changed. */
  settle() {
    clearTimeout(this.timer);
    const hasLabels = this.values.labels.length > 0;
    this.find("#vocabulary").disabled = hasLabels;
    const calibrated = this.find("#score option[value=calibrated]");
    calibrated.disabled = hasLabels || !this.vocabulary?.calibrated;
    if (calibrated.disabled && calibrated.selected) this.find("#score").value = "";
    this.find("#score-hint").textContent = SCORE_HINTS[this.find("#score").value];
    const values = JSON.stringify(this.values);
    if (values === this.lastValues) return;
    this.lastValues = values;
    this.onChange();
  }
}
