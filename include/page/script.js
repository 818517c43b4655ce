// “Try it”: classifies an uploaded image, or a random test image of each class.
const area = document.getElementById("try");
if (area) {
  const state = document.getElementById("state"), predictions = document.getElementById("predictions");

  const createElement = (name, text, className) => {
    const element = document.createElement(name);
    element.textContent = text ?? "";
    if (className) element.className = className;
    return element;
  };

  let lastUpload = null; // the file of the last prediction

  const createInvertButton = () => {
    const note = createElement("p", "This image may be a negative: its edges are unlike the background of the dataset. ");
    const button = createElement("button", "Invert and classify");
    button.addEventListener("click", () => classify(`${area.dataset.image}?invert=true`, { method: "POST", body: lastUpload }));
    note.append(button);
    return note;
  };

  const createCard = (prediction) => {
    const card = createElement("article", "", "prediction"), image = createElement("img"), list = createElement("ol");
    image.src = prediction.picture;
    image.alt = "the image as the model receives it";
    const isOod = prediction.answer !== prediction.class;
    const likely = Object.entries(prediction.probabilities).sort((a, b) => b[1] - a[1]).slice(0, 3);
    for (const [name, share] of likely) list.append(createElement("li", `${name} ${(100 * share).toFixed(1)}%`));
    const format = (number) => number.toFixed(2).replace("-", "−");
    const score = `OOD score ${format(prediction.ood_score)}, threshold ${format(prediction.threshold)}`;
    const isWrong = prediction.truth && prediction.truth !== prediction.answer;
    card.append(image, createElement("h2", prediction.answer, isOod || isWrong ? "bad" : "good"));
    if (prediction.truth) card.append(createElement("p", `${isWrong ? "✗" : "✓"} True class: ${prediction.truth}`));
    if (isOod) card.append(createElement("p", "Closest classes:", "quiet"));
    card.append(list, createElement("p", score, "quiet"));
    if (prediction.looks_inverted && lastUpload) card.append(createInvertButton());
    return card;
  };

  const classify = async (address, options) => {
    state.textContent = "Classifying … (the first request loads the model)";
    state.className = "quiet";
    try {
      const response = await fetch(address, options);
      const content = await response.json();
      if (!response.ok) throw new Error(content.detail);
      predictions.replaceChildren(...[content].flat().map(createCard));
      state.textContent = "";
    } catch (error) {
      predictions.replaceChildren();
      state.textContent = `Error: ${error.message}`;
      state.className = "bad";
    }
  };

  const upload = document.getElementById("upload"), draw = document.getElementById("draw");
  upload.addEventListener("change", (event) => {
    const [file] = event.target.files;
    lastUpload = file;
    if (file) classify(area.dataset.image, { method: "POST", body: file });
    event.target.value = "";
  });
  draw.addEventListener("click", () => {
    lastUpload = null;
    classify(area.dataset.examples);
  });
  upload.disabled = draw.disabled = false; // only now, since the listeners are set
}
