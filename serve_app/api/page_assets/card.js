// One picture: its thumbnail, its tags as bars, or what went wrong. Labels and names are shown as text, never as markup.

import { drawTicks, scaleOf } from "./scale.js";

const FIRST_TAGS = 8;

export class Card {
  constructor(template, file, name) {
    this.file = file;
    this.name = name;
    this.answer = null; // the service's, with every tag
    this.error = null;
    this.element = template.content.firstElementChild.cloneNode(true);
    this.find("h3").textContent = name;
    this.find("h3").title = name;
    this.find(".remove").setAttribute("aria-label", `Remove ${name}`);
    this.find("article").setAttribute("aria-label", name);
    this.find(".more").addEventListener("click", () => this.toggle());
    this.showThumbnail();
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  showThumbnail() {
    const image = this.find("img");
    const url = URL.createObjectURL(this.file);
    const done = () => URL.revokeObjectURL(url);
    image.addEventListener("load", done, { once: true });
    image.addEventListener("error", () => {
      done();
      const kind = /\.(\w{1,5})$/.exec(this.name)?.[1].toUpperCase() ?? "This file";
      image.replaceWith(Object.assign(document.createElement("p"), { textContent: `${kind} – no preview in this browser` }));
    }, { once: true });
    image.src = url;
  }

  showWaiting(text) {
    this.find("article").setAttribute("aria-busy", "true");
    this.find(".wait").textContent = text;
    this.find(".error").hidden = true;
  }

  showAnswer(answer, elapsedMs) {
    this.settle({ answer: { ...answer, tags: [...answer.tags].sort((a, b) => b.confidence - a.confidence) } });
    const views = answer.metadata?.views;
    this.find(".took").textContent = `${answer.score} · ${views ? `${views} views · ` : ""}${Math.round(answer.inference_time_ms)} ms`;
    this.find(".took").title = `${Math.round(answer.inference_time_ms)} ms in the service, ${Math.round(elapsedMs)} ms in all`;
    drawTicks(this.find(".ticks"), scaleOf(answer.score));
  }

  showError(error) {
    this.settle({ error });
    this.find(".error").hidden = false;
    this.find(".error .said").textContent = error.message;
    this.find(".error code").textContent = error.code;
    this.find(".again").hidden = !error.passing;
  }

  settle({ answer = null, error = null }) {
    Object.assign(this, { answer, error });
    this.find("article").removeAttribute("aria-busy");
    this.find(".wait").textContent = "";
    this.find(".error").hidden = !error;
    for (const part of [".tags", ".ticks", ".took"]) this.find(part).replaceChildren();
    this.find(".none").hidden = this.find(".more").hidden = true;
  }

  /** Return the tags at or above a threshold, the best first. */
  passing(threshold) {
    const scale = scaleOf(this.answer?.score);
    return (this.answer?.tags ?? []).filter((tag) => scale.passes(tag.confidence, threshold));
  }

  showFrom(threshold) {
    if (!this.answer) return;
    const scale = scaleOf(this.answer.score);
    const tags = this.passing(threshold);
    this.find(".tags").replaceChildren(...tags.map((tag, at) => tagRow(tag, scale, at >= FIRST_TAGS)));
    this.find(".tags").style.setProperty("--threshold", scale.placeOfThreshold(threshold));
    this.find(".ticks").hidden = !tags.length;
    this.showNone(tags, scale, threshold);
    this.showMore(tags.length - FIRST_TAGS);
  }

  showNone(tags, scale, threshold) {
    const best = this.answer.tags[0];
    this.find(".none").hidden = tags.length > 0;
    this.find(".none").textContent = best
      ? `No tag reaches ${scale.thresholdText(threshold)}. The best is “${best.label}” with ${scale.text(best.confidence)}.`
      : "The service gave no tag.";
  }

  showMore(hidden) {
    const more = this.find(".more");
    more.hidden = hidden <= 0;
    more.dataset.hidden = hidden;
    const open = more.getAttribute("aria-expanded") === "true";
    more.textContent = open ? "Show fewer" : `Show ${hidden} more`;
    this.find(".tags").classList.toggle("all", open);
  }

  toggle() {
    const more = this.find(".more");
    more.setAttribute("aria-expanded", String(more.getAttribute("aria-expanded") !== "true"));
    this.showMore(Number(more.dataset.hidden));
  }
}

function tagRow(tag, scale, later) {
  const row = document.createElement("li");
  row.classList.toggle("later", later);
  for (const [name, text] of [["label", tag.label], ["value", scale.text(tag.confidence)], ["bar", ""]]) {
    const part = document.createElement("span");
    part.className = name;
    part.textContent = text;
    row.append(part, " ");
  }
  row.querySelector(".bar").style.setProperty("--place", scale.placeOf(tag.confidence));
  row.querySelector(".bar").setAttribute("aria-hidden", "true");
  return row;
}
