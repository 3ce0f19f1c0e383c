// Checks custom resources against the schemas of their operators.
//
//   node deploy/schemas.mjs FOLDER < documents.json
//
// FOLDER holds node_modules with @kubernetes-models/keda and @kubernetes-models/prometheus-operator.
// Standard input is a JSON list of [name, document]. Each problem is a line of standard output; exit
// status 1 when there is any.
import { readFileSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const modules = path.resolve(process.argv[2], "node_modules");

const folders = {
  "keda.sh/v1alpha1": "@kubernetes-models/keda/keda.sh/v1alpha1",
  "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
};

async function checkResource(document) {
  const folder = folders[document.apiVersion];
  if (!folder) throw new Error(`no schema of ${document.apiVersion}`);
  const models = await import(pathToFileURL(path.join(modules, folder, "index.js")));
  if (!models[document.kind]) throw new Error(`no schema of ${document.kind}`);
  new models[document.kind](document).validate();
}

let failed = false;
for (const [name, document] of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    await checkResource(document);
  } catch (error) {
    failed = true;
    console.log(`${name}: ${error.message}`);
  }
}
process.exit(failed ? 1 : 0);
