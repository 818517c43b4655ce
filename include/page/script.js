// The part of the page that asks the champion: an upload, or a sample of each class.
const area = document.getElementById("try");
if (area) {
  const state = document.getElementById("state"), answers = document.getElementById("answers");

  const element = (name, text, kind) => {
    const made = document.createElement(name);
    made.textContent = text ?? "";
    if (kind) made.className = kind;
    return made;
  };

  const card = (answer) => {
    const made = element("article", "", "answer"), image = element("img"), list = element("ol");
    image.src = answer.picture;
    image.alt = "what the model saw";
    const novel = answer.answer !== answer.class;
    const likely = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]).slice(0, 3);
    for (const [name, share] of likely) list.append(element("li", `${name} ${(100 * share).toFixed(1)} %`));
    const compared = `familiarity ${answer.familiarity.toFixed(4)}, threshold ${answer.threshold.toFixed(4)}`;
    const wrong = answer.truth && answer.truth !== answer.answer;
    made.append(image, element("h2", answer.answer, novel || wrong ? "bad" : "good"));
    if (answer.truth) made.append(element("p", `shows: ${answer.truth}`));
    if (novel) made.append(element("p", "Were it clothing, it would be:", "quiet"));
    made.append(list, element("p", compared, "quiet"));
    return made;
  };

  const ask = async (address, options) => {
    state.textContent = "Asking … (the first question loads the model)";
    state.className = "quiet";
    try {
      const response = await fetch(address, options);
      const found = await response.json();
      if (!response.ok) throw new Error(found.detail);
      answers.replaceChildren(...[found].flat().map(card));
      state.textContent = "";
    } catch (error) {
      answers.replaceChildren();
      state.textContent = `No answer: ${error.message}`;
      state.className = "bad";
    }
  };

  const upload = document.getElementById("upload"), draw = document.getElementById("draw");
  upload.addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file) ask(area.dataset.image, { method: "POST", body: file });
    event.target.value = "";
  });
  draw.addEventListener("click", () => ask(area.dataset.samples));
  upload.disabled = draw.disabled = false; // not before somebody listens
}
