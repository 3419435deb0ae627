// Sends a chosen, dropped or pasted image to this machine's server, and follows to the page of its neighbours.
"use strict";

const form = document.querySelector(".drop");
const problem = document.getElementById("problem");

function say(text) {
  document.getElementById("status").textContent = text;
}

function refuse(text) {
  say("");
  problem.textContent = text;
  problem.hidden = false;
}

async function send(file) {
  problem.hidden = true;
  if (file.size > Number(form.dataset.bytes)) {
    refuse(`${file.name} is larger than ${form.dataset.bytes / 1048576} MiB. Make the image smaller.`);
    return;
  }
  say(`Searching for images like ${file.name} …`);
  try {
    const answer = await fetch(`/queries?name=${encodeURIComponent(file.name)}`, {
      method: "POST",
      headers: { "content-type": "application/octet-stream" },
      body: file,
    });
    const kind = answer.headers.get("content-type") || "";
    const found = kind.includes("json") ? await answer.json() : { problem: await answer.text() };
    if (answer.ok) location.assign(found.page);
    else refuse(found.problem);
  } catch (error) {
    refuse("The server does not answer. Is it still running in its terminal?");
  }
}

function files(event) {
  return event.dataTransfer && event.dataTransfer.types.includes("Files");
}

function over(event) {
  if (!files(event)) return;
  event.preventDefault();
  document.body.classList.toggle("over", event.type === "dragover");
}

if (form) {
  const input = document.getElementById("file");
  // A browser may remember a file that it no longer holds.
  input.value = "";
  input.addEventListener("change", () => input.files.length && send(input.files[0]));
  addEventListener("dragover", over);
  addEventListener("dragleave", over);
  addEventListener("drop", (event) => {
    over(event);
    const file = event.dataTransfer.files[0];
    if (file) send(file);
    else if (files(event)) refuse("What was dropped is no file.");
  });
  addEventListener("paste", (event) => {
    const file = event.clipboardData && event.clipboardData.files[0];
    if (file) send(file);
  });
}

// Where a picture cannot be drawn, its place says so.
for (const image of document.querySelectorAll(".card img")) {
  const replace = () => {
    const place = document.createElement("span");
    place.className = "gone";
    place.textContent = "This image cannot be read.";
    image.replaceWith(place);
  };
  if (image.complete && !image.naturalWidth) replace();
  else image.addEventListener("error", replace);
}
