// The page receives images and shows a card with tags for each. request.js and service.js call the service.

import { Card } from "./card.js";
import { listenForFiles } from "./intake.js";
import { curlCommand, tagRequest } from "./request.js";
import { FALLBACK_THRESHOLD, SLIDER_STEPS, drawTicks, scaleOf } from "./scale.js";
import { callService, hasKey, limitConcurrency, storeKey } from "./service.js";
import { Settings } from "./settings.js";

const get = (id) => document.getElementById(id);
const cards = [];
let model = null;
let scoreShown = "sigmoid"; // kind of score in the last response, which determines the axis of the slider
let threshold = FALLBACK_THRESHOLD;
let thresholdChosen = false; // whether the user moved the slider; the page then keeps the threshold
let pastedCount = 0;
let starting = true;
let settings = null;

// --- tagging

async function tag(card) {
  card.aborter?.abort();
  const aborter = (card.aborter = new AbortController());
  card.showWaiting("Waiting …");
  showState();
  try {
    await limitConcurrency(() => tagNow(card, aborter.signal));
  } catch (error) {
    if (aborter.signal.aborted) return; // the card was removed, or is tagged again with other settings
    if (error.status === 401) requestKey();
    card.showError(error);
  }
  showState();
}

async function tagNow(card, signal) {
  signal.throwIfAborted();
  card.showWaiting("Tagging …");
  const { path, options } = tagRequest(settings.values, card.file);
  const startedMs = performance.now();
  const onWait = (seconds) => card.showWaiting(`The service is busy. Retrying in ${seconds} s …`);
  const response = await callService(path, { ...options, signal }, onWait);
  signal.throwIfAborted();
  card.showResponse(response, performance.now() - startedMs);
  scoreShown = response.score;
  showThreshold();
  card.showTags(threshold);
}

function addFiles(files) {
  const added = files.map((file) => new Card(get("card-template"), file, nameOf(file)));
  for (const card of added) {
    card.find(".remove").addEventListener("click", () => remove(card));
    card.find(".retry").addEventListener("click", () => tag(card));
    cards.push(card);
    get("cards").append(card.element);
  }
  for (const card of added) tag(card);
}

function nameOf(file) {
  const fromClipboard = /^image\.(\w+)$/.exec(file.name); // the name that browsers give a pasted image
  if (!fromClipboard) return file.name || "image";
  pastedCount += 1;
  return `pasted-${pastedCount}.${fromClipboard[1]}`;
}

function remove(card) {
  const i = cards.indexOf(card);
  card.aborter?.abort();
  cards.splice(i, 1);
  card.element.remove();
  showState();
  (cards[Math.min(i, cards.length - 1)]?.find(".remove") ?? get("pick")).focus();
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
  if (!thresholdChosen) threshold = defaultThreshold();
  showThreshold();
  for (const card of cards) tag(card);
}

// --- threshold

/** Return the threshold that the service itself would apply, if it is known. */
function defaultThreshold() {
  const { score, labels } = settings.values;
  if (score === "margin") return 0.5; // as likely as the background prompts
  const uncalibratedDefault = settings.vocabularies.find((card) => card.default && !card.calibrated);
  const vocabulary = labels.length ? uncalibratedDefault : settings.vocabulary;
  if (score && vocabulary?.calibrated) return FALLBACK_THRESHOLD; // its threshold applies only to the default score
  return vocabulary?.confidence_threshold ?? FALLBACK_THRESHOLD;
}

function showThreshold() {
  const scale = scaleOf(settings.values.score || scoreShown);
  const text = scale.thresholdText(threshold);
  drawTicks(get("threshold-ticks"), scale);
  get("threshold").value = Math.round(scale.positionOfThreshold(threshold) * SLIDER_STEPS);
  get("threshold").setAttribute("aria-valuetext", text);
  get("threshold-text").textContent = text;
  showCurl();
}

function thresholdMoved() {
  thresholdChosen = true;
  threshold = scaleOf(settings.values.score || scoreShown).thresholdAtPosition(Number(get("threshold").value) / SLIDER_STEPS);
  showThreshold();
  for (const card of cards) card.showTags(threshold);
  showState();
}

// --- status, curl command and download

function showState() {
  get("results").hidden = !cards.length;
  get("main").toggleAttribute("data-empty", !cards.length);
  get("status").textContent = statusText();
  get("download").disabled = !cards.some((card) => card.response || card.error);
  showCurl();
}

function statusText() {
  const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
  const failed = cards.filter((card) => card.error).length;
  const busy = cards.filter((card) => card.find("[aria-busy]")).length;
  if (busy) return `Tagging: ${cards.length - busy} of ${cards.length} done`;
  const shown = cards.reduce((sum, card) => sum + card.passing(threshold).length, 0);
  return `${count(cards.length, "image")}, ${count(shown, "tag")}${failed ? `, ${failed} failed` : ""}`;
}

function showCurl() {
  get("curl").textContent = curlCommand(settings.values, threshold, cards[0]?.name ?? "photo.jpg", hasKey());
}

async function copyCurl() {
  const copied = await navigator.clipboard?.writeText(get("curl").textContent).then(() => true, () => false);
  // browsers have no clipboard without HTTPS, so select the text for Ctrl+C
  if (!copied) getSelection().selectAllChildren(get("curl"));
  get("copy").textContent = copied ? "Copied" : "Press Ctrl+C";
  setTimeout(() => (get("copy").textContent = "Copy"), 2000);
}

function download() {
  const results = cards.map((card) => {
    if (card.response) return { file: card.name, ...card.response, tags: card.passing(threshold) };
    return { file: card.name, error: card.error && { code: card.error.code, message: card.error.message } };
  });
  const content = { model: model?.model ?? null, confidence_threshold: threshold, settings: settings.values, results };
  const url = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }));
  Object.assign(document.createElement("a"), { href: url, download: "tags.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// --- the service

function requestKey() {
  if (!get("key-form").hidden) return;
  get("key-form").hidden = false;
  get("key").focus();
}

function useKey(event) {
  event.preventDefault();
  storeKey(get("key").value);
  get("key").value = "";
  get("key-form").hidden = true;
  get("pick").focus();
  loadService();
  for (const card of cards.filter(({ error }) => error?.status === 401)) tag(card);
}

async function loadService() {
  get("model").textContent = "";
  try {
    const showVocabularies = ({ vocabularies }) => settings.showVocabularies(vocabularies);
    [model] = await Promise.all([callService("v1/model"), callService("v1/vocabularies").then(showVocabularies)]);
    get("model").textContent = modelText(model);
  } catch (error) {
    get("model").textContent = error.message;
    if (error.status === 401) requestKey();
  }
  if (!thresholdChosen) threshold = defaultThreshold();
  showThreshold();
  for (const card of cards) card.showTags(threshold);
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
      // without storage, the theme applies until the page is closed
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
  listenForFiles(addFiles, { button: get("pick"), input: get("files"), overlay: get("drop-here") });
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
