// The page: pictures come in, cards with their tags stand there. What goes over the wire is in request.js and service.js.

import { Card } from "./card.js";
import { takeFiles } from "./intake.js";
import { curlCommand, tagRequest } from "./request.js";
import { FALLBACK_THRESHOLD, SLIDER_STEPS, drawTicks, scaleOf } from "./scale.js";
import { ask, hasKey, inTurn, keepKey } from "./service.js";
import { Settings } from "./settings.js";

const get = (id) => document.getElementById(id);
const cards = [];
let model = null;
let scoreShown = "sigmoid"; // of the last answer: what axis the slider has
let threshold = FALLBACK_THRESHOLD;
let thresholdChosen = false; // by hand: then it stays
let pasted = 0;
let starting = true;
let settings = null;

// --- tagging

async function tag(card) {
  card.aborter?.abort();
  const aborter = (card.aborter = new AbortController());
  card.showWaiting("Waiting …");
  showState();
  try {
    await inTurn(() => tagNow(card, aborter.signal));
  } catch (error) {
    if (aborter.signal.aborted) return; // removed, or asked again with other settings
    if (error.status === 401) askForKey();
    card.showError(error);
  }
  showState();
}

async function tagNow(card, signal) {
  signal.throwIfAborted();
  card.showWaiting("Tagging …");
  const { path, options } = tagRequest(settings.values, card.file);
  const startedMs = performance.now();
  const waits = (seconds) => card.showWaiting(`The service is busy. Next try in ${seconds} s …`);
  const answer = await ask(path, { ...options, signal }, waits);
  signal.throwIfAborted();
  card.showAnswer(answer, performance.now() - startedMs);
  scoreShown = answer.score;
  showThreshold();
  card.showFrom(threshold);
}

function addFiles(files) {
  const added = files.map((file) => new Card(get("card-template"), file, nameOf(file)));
  for (const card of added) {
    card.find(".remove").addEventListener("click", () => remove(card));
    card.find(".again").addEventListener("click", () => tag(card));
    cards.push(card);
    get("cards").append(card.element);
  }
  for (const card of added) tag(card);
}

function nameOf(file) {
  const fromClipboard = /^image\.(\w+)$/.exec(file.name); // what browsers call a pasted picture
  if (!fromClipboard) return file.name || "picture";
  pasted += 1;
  return `pasted-${pasted}.${fromClipboard[1]}`;
}

function remove(card) {
  const at = cards.indexOf(card);
  card.aborter?.abort();
  cards.splice(at, 1);
  card.element.remove();
  showState();
  (cards[Math.min(at, cards.length - 1)]?.find(".remove") ?? get("pick")).focus();
}

function clear() {
  for (const card of cards.splice(0)) {
    card.aborter?.abort();
    card.element.remove();
  }
  showState();
  get("pick").focus();
}

function settingsChanged() {
  if (starting) return;
  if (!thresholdChosen) threshold = ownThreshold();
  showThreshold();
  for (const card of cards) tag(card);
}

// --- threshold

/** Return what the service itself would ask of tags, where that is known. */
function ownThreshold() {
  const { score, labels } = settings.values;
  if (score === "margin") return 0.5; // as likely as nothing in particular
  const card = labels.length ? settings.vocabularies.find((each) => each.default && !each.calibrated) : settings.vocabulary;
  return (score && card?.calibrated ? undefined : card?.confidence_threshold) ?? FALLBACK_THRESHOLD;
}

function showThreshold() {
  const scale = scaleOf(settings.values.score || scoreShown);
  const text = scale.thresholdText(threshold);
  drawTicks(get("threshold-ticks"), scale);
  get("threshold").value = Math.round(scale.placeOfThreshold(threshold) * SLIDER_STEPS);
  get("threshold").setAttribute("aria-valuetext", text);
  get("threshold-text").textContent = text;
  showCurl();
}

function thresholdMoved() {
  thresholdChosen = true;
  threshold = scaleOf(settings.values.score || scoreShown).thresholdAt(Number(get("threshold").value) / SLIDER_STEPS);
  showThreshold();
  for (const card of cards) card.showFrom(threshold);
  showState();
}

// --- what is said and handed out

function showState() {
  get("results").hidden = !cards.length;
  get("main").toggleAttribute("data-empty", !cards.length);
  get("status").textContent = statusText();
  get("download").disabled = !cards.some((card) => card.answer || card.error);
  showCurl();
}

function statusText() {
  const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
  const failed = cards.filter((card) => card.error).length;
  const open = cards.filter((card) => card.find("[aria-busy]")).length;
  if (open) return `Tagging: ${cards.length - open} of ${cards.length} done`;
  const shown = cards.reduce((sum, card) => sum + card.passing(threshold).length, 0);
  return `${count(cards.length, "picture")}, ${count(shown, "tag")}${failed ? `, ${failed} failed` : ""}`;
}

function showCurl() {
  get("curl").textContent = curlCommand(settings.values, threshold, cards[0]?.name ?? "photo.jpg", hasKey());
}

async function copyCurl() {
  const said = await navigator.clipboard?.writeText(get("curl").textContent).then(() => "Copied", () => null);
  if (!said) getSelection().selectAllChildren(get("curl")); // without https there is no clipboard: it is ready for Ctrl+C
  get("copy").textContent = said ?? "Press Ctrl+C";
  setTimeout(() => (get("copy").textContent = "Copy"), 2000);
}

function download() {
  const results = cards.map((card) => {
    if (card.answer) return { file: card.name, ...card.answer, tags: card.passing(threshold) };
    return { file: card.name, error: card.error && { code: card.error.code, message: card.error.message } };
  });
  const content = { model: model?.model ?? null, confidence_threshold: threshold, settings: settings.values, results };
  const url = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }));
  Object.assign(document.createElement("a"), { href: url, download: "tags.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// --- the service

function askForKey() {
  if (!get("key-form").hidden) return;
  get("key-form").hidden = false;
  get("key").focus();
}

function useKey(event) {
  event.preventDefault();
  keepKey(get("key").value);
  get("key").value = "";
  get("key-form").hidden = true;
  get("pick").focus();
  loadService();
  for (const card of cards.filter(({ error }) => error?.status === 401)) tag(card);
}

async function loadService() {
  get("model").textContent = "";
  try {
    [model] = await Promise.all([ask("v1/model"), ask("v1/vocabularies").then(({ vocabularies }) => settings.showVocabularies(vocabularies))]);
    get("model").textContent = modelText(model);
  } catch (error) {
    get("model").textContent = error.message;
    if (error.status === 401) askForKey();
  }
  if (!thresholdChosen) threshold = ownThreshold();
  showThreshold();
  for (const card of cards) card.showFrom(threshold);
  showState();
}

function modelText({ model: name, image_size: side, dtype, device }) {
  return [name, side ? `${side} px` : "any aspect", `${dtype} on ${device}`].join(" · ");
}

// --- start

function setUpTheme() {
  const root = document.documentElement;
  const show = () => get("theme").setAttribute("aria-pressed", String(root.dataset.theme === "dark"));
  get("theme").addEventListener("click", () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("theme", root.dataset.theme);
    } catch {
      // it holds until the page is left
    }
  });
  new MutationObserver(show).observe(root, { attributeFilter: ["data-theme"] });
  show();
}

function setUpWidth() {
  const wide = matchMedia("(min-width: 60rem)");
  const show = () => (get("settings").open = wide.matches);
  wide.addEventListener("change", show);
  show();
}

function start() {
  setUpTheme();
  setUpWidth();
  settings = new Settings(get("settings"), settingsChanged);
  starting = false;
  takeFiles(addFiles, { button: get("pick"), input: get("files"), overlay: get("drop-here") });
  get("threshold").addEventListener("input", thresholdMoved);
  get("download").addEventListener("click", download);
  get("clear").addEventListener("click", clear);
  get("copy").addEventListener("click", copyCurl);
  get("key-form").addEventListener("submit", useKey);
  showThreshold();
  showState();
  loadService();
}

start();
