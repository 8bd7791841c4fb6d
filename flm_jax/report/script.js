function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle; else high = middle;
  }
  return Math.abs(xs[low] - x) < Math.abs(xs[high] - x) ? low : high;
}

function paint(node, series) {
  if (series.shade === null) {
    node.dataset.colour = series.colour;
  } else {
    node.dataset.colour = "shade";
    node.style.setProperty("--shade", series.shade + "%");
  }
}

/* Charts: a vertical line, a dot on each curve and a box with the values under the pointer. */
for (const plot of document.querySelectorAll(".plot")) {
  const values = plot.querySelector("script");
  if (!values) continue;  // a scatter, whose points have titles
  const data = JSON.parse(values.textContent);
  const [x0, x1] = data.x, [y0, y1] = data.y;
  const place = data.log
    ? (x) => Math.log(Math.max(x, x0) / x0) / Math.log(x1 / x0)
    : (x) => (x - x0) / (x1 - x0);
  const back = data.log
    ? (share) => x0 * Math.pow(x1 / x0, share)
    : (share) => x0 + share * (x1 - x0);
  const overlay = element("div", "overlay");
  overlay.hidden = true;
  const line = element("div", "cross"), box = element("div", "box");
  overlay.append(line, box);
  const dots = data.series.map((series) => {
    const dot = element("div", "point");
    paint(dot, series);
    overlay.append(dot);
    return dot;
  });
  plot.append(overlay);

  plot.addEventListener("pointermove", (event) => {
    const frame = plot.getBoundingClientRect();
    const x = back(Math.min(1, Math.max(0, (event.clientX - frame.left) / frame.width)));
    const main = data.series[0], at = main.x[nearest(main.x, x)], share = place(at);
    overlay.hidden = false;
    line.style.left = 100 * share + "%";
    box.replaceChildren(element("b", "", at.toLocaleString("en")));
    data.series.forEach((series, i) => {
      const index = nearest(series.x, at), row = element("span", "key");
      const note = series.x[index] === at ? "" : " (at " + series.x[index].toLocaleString("en") + ")";
      paint(row, series);
      row.append(series.name + " ", element("b", "", series.y[index].toPrecision(4)), note);
      box.append(row);
      dots[i].style.left = 100 * place(series.x[index]) + "%";
      dots[i].style.top = 100 * (y1 - series.y[index]) / (y1 - y0) + "%";
    });
    box.classList.toggle("left", share > 0.6);
    box.style.left = 100 * share + "%";
  });
  plot.addEventListener("pointerleave", () => { overlay.hidden = true; });
}

/* The denoising strip: a slider through all frames. */
for (const node of document.querySelectorAll(".player")) {
  const player = new Player(node);
  player.show(JSON.parse(node.querySelector("script").textContent));
  node.hidden = false;
}

for (const button of document.querySelectorAll("button.copy")) {
  if (!navigator.clipboard) continue;
  button.hidden = false;
  button.addEventListener("click", () => {
    navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
}
