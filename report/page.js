"use strict";

// tables: a click on a head sorts by that column, a second one the other way round
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
      };
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        return typeof x === "number" ? x - y : x.localeCompare(y);
      };
      const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? order(b, a) : order(a, b)));
      table.tBodies[0].append(...rows);
    });
  });
}

// players: one scrubber moves all videos of a clip; while they play the first one leads
for (const player of document.querySelectorAll(".player")) {
  const videos = [...player.querySelectorAll("video")];
  const scrubber = player.querySelector("input");
  const button = player.querySelector("button");
  const label = player.querySelector("output");
  const fps = Number(player.dataset.fps);
  const given = Number(player.dataset.given);
  const last = Number(scrubber.max);

  const say = (frame) => {
    player.classList.toggle("given", frame < given);
    label.textContent =
      frame < given ? `frame ${frame + 1}: given` : `frame ${frame + 1}: generated frame ${frame - given + 1}`;
  };
  const show = (frame) => {
    scrubber.value = frame;
    videos.forEach((video) => (video.currentTime = (frame + 0.5) / fps));
    say(frame);
  };
  const stop = () => {
    videos.forEach((video) => video.pause());
    button.textContent = "play";
  };
  const follow = () => {
    if (button.textContent === "play") return;
    const time = videos[0].currentTime;
    const frame = Math.min(last, Math.floor(time * fps));
    scrubber.value = frame;
    say(frame);
    for (const video of videos.slice(1)) {
      if (Math.abs(video.currentTime - time) > 1 / fps) video.currentTime = time;
    }
    if (videos[0].ended) {
      stop();
      return;
    }
    requestAnimationFrame(follow);
  };
  scrubber.addEventListener("input", () => {
    stop();
    show(Number(scrubber.value));
  });
  button.addEventListener("click", () => {
    if (button.textContent === "pause") {
      stop();
      return;
    }
    if (Number(scrubber.value) >= last) show(0);
    button.textContent = "pause";
    Promise.all(videos.map((video) => video.play())).then(follow, stop);
  });
  show(given);
}
