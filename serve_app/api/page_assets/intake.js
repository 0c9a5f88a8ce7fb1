// Receives images that are dropped anywhere on the page, pasted or chosen, and passes the files on unchanged.

/** Call `onFiles` with every list of files that the user adds. */
export function listenForFiles(onFiles, { button, input, overlay }) {
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    onFiles([...input.files]);
    input.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return; // the browser pastes text at the cursor
    event.preventDefault();
    onFiles(files);
  });
  listenForDrops(onFiles, overlay);
}

function listenForDrops(onFiles, overlay) {
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    overlay.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) overlay.hidden = true; // the pointer left the window
  });
  document.addEventListener("drop", async (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    overlay.hidden = true;
    onFiles(await droppedFiles(event.dataTransfer));
  });
}

/** Return the dropped files, including the images in dropped folders. */
async function droppedFiles(transfer) {
  const files = [...transfer.files];
  // the items must be read before the first await
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.());
  if (!entries.some((entry) => entry?.isDirectory)) return files;
  return (await Promise.all(entries.filter(Boolean).map(filesOf))).flat();
}

async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    // returns at most a hundred entries per call
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!part.length) break;
    found.push(...part);
  }
  const inside = await Promise.all(found.map(filesOf));
  return inside.flat().filter((file) => file.type.startsWith("image/") || /\.tiff?$/i.test(file.name));
}
