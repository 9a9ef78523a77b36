// docs/errors.md: leaves those entries that a pasted line may be, by their fixed words.
document.addEventListener("DOMContentLoaded", () => {
  const box = document.getElementById("line");
  if (!box) return;
  const entries = [...document.querySelectorAll("article li > code:first-child, article li > p > code:first-child")].map(
    (code) => ({ item: code.closest("li"), fixed: code.textContent.trim().split("…").map((part) => part.trim()).filter(Boolean) })
  );
  const letters = (text) => text.replace(/[^a-z]/gi, "").length;
  // The share of an entry's fixed text that the line has, in its order.
  const share = (fixed, line) => {
    let from = 0, met = 0, all = 0;
    for (const part of fixed) {
      all += letters(part);
      const at = line.indexOf(part.toLowerCase(), from);
      if (at >= 0) { met += letters(part); from = at + part.length; }
    }
    return all ? met / all : 0;
  };
  const show = () => {
    const line = box.value.trim().toLowerCase().replace(/\s+/g, " ").replace(/^raymat: (error: )?/, "");
    const found = new Set();
    for (const { item, fixed } of entries) {
      const words = fixed.join(" ").toLowerCase();
      const fits = !line || words.includes(line) || (share(fixed, line) > 0.9 && letters(words) > 5);
      item.hidden = !fits;
      if (fits) found.add(item.parentElement);
    }
    for (const list of new Set(entries.map(({ item }) => item.parentElement))) {
      const open = !line || found.has(list);
      list.hidden = !open;
      for (let before = list.previousElementSibling; before && !/^H[123]$/.test(before.tagName); before = before.previousElementSibling)
        before.hidden = !open;
      let heading = list.previousElementSibling;
      while (heading && heading.tagName !== "H3") heading = heading.previousElementSibling;
      if (heading) heading.hidden = !open;
    }
    for (const chapter of document.querySelectorAll("article h2")) chapter.hidden = Boolean(line);
  };
  box.addEventListener("input", show);
  const asked = new URLSearchParams(location.search).get("line"); // errors.html?line=... for links from elsewhere
  if (asked) {
    box.value = asked;
    show();
  }
});
