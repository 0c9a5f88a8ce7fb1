// What a user of huggingface.js writes: node hugging_face.mjs ADDRESS PICTURE
import { readFileSync } from "node:fs";
import { InferenceClient } from "@huggingface/inference";

const [, , address, picture] = process.argv;
const client = new InferenceClient().endpoint(address);
const image = new Blob([readFileSync(picture)], { type: "image/jpeg" });
const zeroShot = await client.zeroShotImageClassification({
  inputs: { image },
  parameters: { candidate_labels: ["blue star", "red circle"] },
});
const plain = await client.imageClassification({ data: image });
console.log(JSON.stringify({ zeroShot, plain }));
