// A card shows one image: its thumbnail, and its tags as bars or its error. Labels and names are text, never markup.

import { drawTicks, scaleOf } from "./scale.js";

const FIRST_TAGS = 8;

export class Card {
  constructor(template, file, name) {
    this.file = file;
    this.name = name;
    this.response = null; // the service's response with all tags
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

  showResponse(response, elapsedMs) {
    const tags = [...response.tags].sort((a, b) => b.confidence - a.confidence);
    this.settle({ response: { ...response, tags } });
    const views = response.metadata?.views;
    this.find(".took").textContent = `${response.score} · ${views ? `${views} views · ` : ""}${Math.round(response.inference_time_ms)} ms`;
    this.find(".took").title = `${Math.round(response.inference_time_ms)} ms in the service, ${Math.round(elapsedMs)} ms in total`;
    drawTicks(this.find(".ticks"), scaleOf(response.score));
  }

  showError(error) {
    this.settle({ error });
    this.find(".error").hidden = false;
    this.find(".error .message").textContent = error.message;
    this.find(".error code").textContent = error.code;
    this.find(".retry").hidden = !error.isTemporary;
  }

  /** Show a response or an error, and clear everything else. */
  settle({ response = null, error = null }) {
    Object.assign(this, { response, error });
    this.find("article").removeAttribute("aria-busy");
    this.find(".wait").textContent = "";
    this.find(".error").hidden = !error;
    for (const part of [".tags", ".ticks", ".took"]) this.find(part).replaceChildren();
    this.find(".none").hidden = this.find(".more").hidden = true;
  }

  /** Return the tags at or above a threshold, in descending order of their scores. */
  passing(threshold) {
    const scale = scaleOf(this.response?.score);
    return (this.response?.tags ?? []).filter((tag) => scale.passes(tag.confidence, threshold));
  }

  /** Show the tags at or above a threshold. */
  showTags(threshold) {
    if (!this.response) return;
    const scale = scaleOf(this.response.score);
    const tags = this.passing(threshold);
    this.find(".tags").replaceChildren(...tags.map((tag, i) => tagRow(tag, scale, i >= FIRST_TAGS)));
    this.find(".tags").style.setProperty("--threshold", scale.positionOfThreshold(threshold));
    this.find(".ticks").hidden = !tags.length;
    this.showNone(tags, scale, threshold);
    this.showMore(tags.length - FIRST_TAGS);
  }

  showNone(tags, scale, threshold) {
    const best = this.response.tags[0];
    this.find(".none").hidden = tags.length > 0;
    this.find(".none").textContent = best
      ? `No tag reaches ${scale.thresholdText(threshold)}. The best is “${best.label}” with ${scale.text(best.confidence)}.`
      : "The service returned no tags.";
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

function tagRow(tag, scale, isFolded) {
  const row = document.createElement("li");
  row.classList.toggle("folded", isFolded);
  for (const [name, text] of [["label", tag.label], ["value", scale.text(tag.confidence)], ["bar", ""]]) {
    const part = document.createElement("span");
    part.className = name;
    part.textContent = text;
    row.append(part, " ");
  }
  row.querySelector(".bar").style.setProperty("--position", scale.positionOf(tag.confidence));
  row.querySelector(".bar").setAttribute("aria-hidden", "true");
  return row;
}
