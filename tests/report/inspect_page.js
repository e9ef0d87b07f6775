// What the tests ask of a page in the browser. The value is JSON text.
JSON.stringify({
  width: window.innerWidth,
  scrollWidth: document.documentElement.scrollWidth,
  // boxes that reach beyond the window, but for what scrolls inside its own box
  outside: [...document.querySelectorAll("body *")]
    .filter((element) => !element.parentElement.closest(".scroll"))
    .filter((element) => element.getBoundingClientRect().right > window.innerWidth + 0.5)
    .map((element) => element.outerHTML.slice(0, 200)),
  fontSizes: [...document.querySelectorAll("p, td, th, pre, summary, h1, h2, h3, span")]
    .filter((element) => element.textContent.trim())
    .map((element) => parseFloat(getComputedStyle(element).fontSize)),
  images: [...document.images].map((image) => ({
    complete: image.complete,
    naturalWidth: image.naturalWidth,
    width: image.getBoundingClientRect().width,
    alt: image.alt,
  })),
  tables: [...document.querySelectorAll("section")].map((section) => ({
    title: section.querySelector("h2").textContent,
    rows: [...section.querySelectorAll("tbody tr")].map((row) =>
      [...row.children].map((cell) => cell.textContent.trim())
    ),
  })),
  completions: [...document.querySelectorAll(".completion bdi")].map((e) => e.textContent),
  prompts: [...document.querySelectorAll(".prompt bdi")].map((e) => e.textContent),
  scripts: document.scripts.length,
  resources: performance.getEntriesByType("resource")
    .map((entry) => entry.name)
    .filter((name) => !name.startsWith("data:")),
  ran: window.ran === undefined ? null : String(window.ran),
  heatmap: [...document.querySelectorAll(".heatmap tbody td")].map((cell) => [
    cell.textContent,
    getComputedStyle(cell).backgroundColor,
  ]),
});
