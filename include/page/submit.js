// “Submit images”: sends each chosen file, one after the other, and shows what became of it.
const area = document.getElementById("submit");
if (area) {
  const input = document.getElementById("batches"), list = document.getElementById("submitted");

  const send = async (file) => {
    const row = document.createElement("li");
    row.textContent = `${file.name}: sending …`;
    list.append(row);
    try {
      const address = `${area.dataset.address}?name=${encodeURIComponent(file.name)}`;
      const response = await fetch(address, { method: "POST", body: file });
      const content = await response.json();
      if (!response.ok) throw new Error(content.detail);
      row.textContent = `${file.name}: submitted as ${content.key}; the next run checks it`;
      row.className = "good";
    } catch (error) {
      row.textContent = `${file.name}: ${error.message}`;
      row.className = "bad";
    }
  };

  input.addEventListener("change", async (event) => {
    for (const file of event.target.files) await send(file);
    event.target.value = "";
  });
  input.disabled = false; // only now, since the listener is set
}
