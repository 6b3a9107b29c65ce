const $ = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)}%`;
let model = null;
let shown = null; // the picture on the page: {blob, name}
let asking = null;

function say(status, wrong = "") {
  $("status").textContent = status;
  $("wrong").textContent = wrong;
}

async function introduce() {
  model = await (await fetch("model")).json();
  document.title = `tljax: ${model.name}`;
  $("name").textContent = model.name;
  const a = model.accuracy;
  const right = a && ` ${percent(a.correct / a.seen)} right on ${a.seen.toLocaleString("en")} ${a.images} images`
    + (a.chose_epoch ? ", which chose the epoch," : "")
    + ` (95% interval ${percent(a.interval95[0])} to ${percent(a.interval95[1])})`
    + (a.without.length ? `, none of them of ${a.without.slice(0, 5).join(", ")}${a.without.length > 5 ? ", …" : ""}.` : ".");
  $("facts").textContent = `${model.network}, ${model.classes.length} classes.${right || ""}`
    + ` Calibration: ${model.calibration}.`;
}

async function ask(blob, name, of = null) {
  asking?.abort();
  const mine = asking = new AbortController();
  if (blob.size > model?.most_bytes) return fail(`${name} has ${(blob.size / 1e6).toFixed(1)} MB; at most ${model.most_bytes / 1e6} MB can be sent`);
  const began = performance.now();
  say(`Looking at ${name} …`);
  $("result").setAttribute("aria-busy", "true");
  const query = new URLSearchParams({ heat: "true", ...(of !== null && { of }) });
  try {
    if (!model) await introduce();
    const headers = { "Content-Type": "application/octet-stream" };
    const response = await fetch(`predict?${query}`, { method: "POST", body: blob, headers, signal: mine.signal });
    const said = await response.json().catch(() => ({ detail: response.statusText }));
    if (!response.ok) return fail(`${name}: ${said.detail}`, of !== null);
    shown = { blob, name };
    await show(said.answers[0], name, performance.now() - began);
  } catch (error) {
    if (mine.signal.aborted) return;
    fail(error instanceof TypeError ? "The service does not answer; is it still running?" : `${name}: ${error.message}`);
  } finally {
    if (mine === asking) $("result").removeAttribute("aria-busy");
  }
}

function fail(reason, keep = false) {
  say("", reason);
  if (!keep) $("result").hidden = true;
  $("result").removeAttribute("aria-busy");
}

async function show(answer, name, took) {
  $("picture").src = answer.picture;
  $("heat").src = answer.heat;
  await Promise.all([$("picture").decode(), $("heat").decode()]);
  $("picture").alt = `${name} as the network saw it`;
  $("heat").alt = `where it shows ${answer.of}, by Grad-CAM`;
  $("caption").textContent = `${name} as the network saw it, ${model.side} x ${model.side} pixels; the redder, the more a place speaks for ${answer.of} (Grad-CAM).`;
  const focused = $("classes").contains(document.activeElement);
  $("classes").replaceChildren(...answer.top.map((one) => row(one, answer.of)));
  if (focused) $("classes").querySelector("[aria-pressed=true]")?.focus();
  $("result").hidden = false;
  const best = answer.top[0];
  say(`${name}: ${best.class}, ${percent(best.probability)}. Answered in ${(took / 1000).toFixed(2)} s.`);
}

function row(one, of) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-pressed", String(one.class === of));
  for (const [kind, text] of [["class", one.class], ["share", percent(one.probability)]]) {
    const span = document.createElement("span");
    span.className = kind;
    span.textContent = text;
    button.append(span);
  }
  const bar = document.createElement("span");
  bar.className = "bar";
  const full = document.createElement("i");
  full.style.width = percent(one.probability);
  bar.append(full);
  button.append(bar);
  button.addEventListener("click", () => ask(shown.blob, shown.name, one.class));
  item.append(button);
  return item;
}

function take(files, from) {
  const found = [...files];
  if (!found.length) return fail(`There is no picture file in what was ${from}.`);
  ask(found[0], found[0].name || "The picture");
}

function choose(input) {
  input.addEventListener("change", () => {
    if (input.files.length) take(input.files, "chosen");
    input.value = ""; // so that the same file can be chosen again
  });
}

async function startCamera() {
  try {
    $("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    $("live").showModal();
  } catch (error) {
    say("", `The camera cannot be used: ${error.message}`);
  }
}

function stopCamera() {
  for (const track of $("video").srcObject?.getTracks() ?? []) track.stop();
  $("video").srcObject = null;
}

async function shoot() {
  const video = $("video");
  if (!video.videoWidth) return;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
  $("live").close();
  ask(blob, "The photo");
}

const fade = () => { $("heat").style.opacity = $("fade").value / 100; };
$("fade").addEventListener("input", fade);
fade(); // a browser keeps the slider where it was

$("drop").addEventListener("click", () => $("file").click());
choose($("file"));
choose($("capture"));
let inside = 0; // dragenter comes for every element that is entered
const over = (change) => document.body.classList.toggle("over", (inside = Math.max(0, inside + change)) > 0);
addEventListener("dragenter", (event) => { event.preventDefault(); over(1); });
addEventListener("dragleave", () => over(-1));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  over(-inside);
  take(event.dataTransfer.files, "dropped");
});
addEventListener("paste", (event) => take(event.clipboardData.files, "pasted"));

// Phones have an app for it, also where a page may not use the camera itself: over plain HTTP from another machine.
const phone = matchMedia("(pointer: coarse)").matches;
const live = Boolean(navigator.mediaDevices?.getUserMedia);
$("camera").hidden = !phone && !live;
$("camera").addEventListener("click", () => (phone ? $("capture").click() : startCamera()));
$("shoot").addEventListener("click", shoot);
$("leave").addEventListener("click", () => $("live").close());
$("live").addEventListener("close", stopCamera);

introduce().catch(() => fail("The service does not answer; is it still running?"));
