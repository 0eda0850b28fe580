// The console before a double of the daemon, which test/console starts: looks, keyboards, screen readers, and what each control asks the API for.

import { readFile } from "node:fs/promises";
import { appearance, open, places, rows } from "./appearance.mjs";
import { accessible, equal, go, home, key, picture, run, screen, type, until } from "./harness.mjs";

await run([
  [
    "a key is asked for, and a wrong one is refused",
    "light",
    async (page) => {
      await go(page);
      const field = page.getByLabel("API key");
      await field.waitFor();
      equal(await field.evaluate((e) => e === document.activeElement), true, "the field has the focus");
      await picture(page, "signin-light");
      await accessible(page);
      await page.keyboard.type("wrong\n");
      await page.getByRole("alert").getByText("does not know this key").waitFor();
      await page.getByLabel("API key").fill(key);
      await page.keyboard.press("Enter");
      await page.getByRole("heading", { name: "Sandboxes" }).waitFor();
      equal(await page.evaluate(() => localStorage.length + document.cookie.length), 0, "what outlives the tab");
      await page.reload();
      await page.getByRole("heading", { name: "Sandboxes" }).waitFor();
      await page.getByRole("button", { name: "Forget key" }).click();
      await page.getByLabel("API key").waitFor();
      equal(await page.evaluate(() => sessionStorage.length), 0, "what is left of the key");
    },
    { signedIn: false },
  ],

  ...appearance,

  [
    "a sandbox is made by keyboard alone",
    "light",
    async (page) => {
      await go(page);
      await rows(page).first().waitFor();
      await page.keyboard.press("Tab");
      equal(await page.evaluate(() => document.activeElement.textContent), "Skip to the content", "the first stop");
      await page.keyboard.press("Enter");
      await page.keyboard.press("Tab");
      equal(await page.evaluate(() => document.activeElement.textContent), "New sandbox", "the stop after the skip");
      await page.keyboard.press("Enter");
      await page.getByRole("dialog").waitFor();
      await page.keyboard.press("Escape");
      await page.getByRole("dialog").waitFor({ state: "detached" });
      equal(await page.evaluate(() => document.activeElement.textContent), "New sandbox", "where the focus returns to");
      await page.keyboard.press("Enter");
      await page.getByRole("dialog").waitFor();
      equal(await page.evaluate(() => document.activeElement.closest("dialog") !== null), true, "the focus is inside the dialog");
      await page.keyboard.type("nonsense\n");
      await page.getByRole("dialog").getByRole("alert").getByText("there is no template nonsense").waitFor();
      await page.getByLabel("Template").fill("python");
      await page.keyboard.press("Enter");
      await page.getByRole("heading", { level: 1, name: /^Sandbox/ }).waitFor();
      await until("the heading has the focus", () => page.evaluate(() => document.activeElement.tagName === "H1"));
      await type(page, "echo $((6*7))", "42");
      await page.keyboard.press("Shift+F6");
      equal(await page.evaluate(() => document.activeElement.textContent), "Into the terminal", "where Shift+F6 leads");
    },
  ],

  [
    "every stop of the keyboard is seen",
    "light",
    async (page) => {
      await places.tree(page);
      await page.locator("h1").focus();
      for (let i = 0; i < 25; i++) {
        await page.keyboard.press("Tab");
        const unseen = await page.evaluate(() => {
          const e = document.activeElement;
          if (e === document.body || e === document.documentElement) return "";
          const ring = (s) => s.outlineStyle !== "none" && parseFloat(s.outlineWidth) > 0;
          const node = e.matches(".node") ? getComputedStyle(e.querySelector("rect")) : undefined;
          return ring(getComputedStyle(e)) || (node && parseFloat(node.strokeWidth) >= 3) ? "" : e.outerHTML.slice(0, 200);
        });
        equal(unseen, "", "a stop without a ring");
      }
    },
  ],

  [
    "motion is reduced where that is wanted",
    "light",
    async (page) => {
      await go(page);
      await rows(page).first().waitFor();
      const moving = await page.evaluate(() => [...document.querySelectorAll("*")].filter((e) => getComputedStyle(e).transitionDuration !== "0s" || getComputedStyle(e).animationName !== "none").length);
      equal(moving, 0, "elements that move");
    },
  ],

  [
    "pause, wake, time, snapshot, fork and kill, from the list",
    "light",
    async (page) => {
      await open(page, "browser-agent", "running");
      const id = (await page.locator("h1 code").getAttribute("title")).slice(0, 8);
      await page.getByRole("link", { name: "Sandboxes" }).click();
      const row = page.getByRole("row").filter({ has: page.locator(`th code:text-is("${id}")`) });
      const focused = () => page.evaluate(() => document.activeElement.getAttribute("aria-label") ?? document.activeElement.tagName);
      await row.getByRole("button", { name: `Pause sandbox ${id}` }).focus();
      await page.keyboard.press("Enter");
      await page.getByRole("status").getByText(`Sandbox ${id} is paused`).waitFor();
      await row.getByText("paused").waitFor();
      await until("the focus after a pause", async () => (await focused()) === `Wake sandbox ${id}`);
      await row.getByRole("button", { name: `Wake sandbox ${id}` }).click();
      await row.getByText("running").waitFor();
      await row.getByRole("button", { name: `Timeout sandbox ${id}` }).click();
      await page.getByLabel("Minutes from now").fill("90");
      await page.keyboard.press("Enter");
      await row.getByText(/^1 h (30|29) min/).waitFor();
      await row.getByRole("button", { name: `Snapshot sandbox ${id}` }).click();
      await page.getByRole("dialog").getByLabel("Name").fill("kept");
      await page.keyboard.press("Enter");
      await page.getByRole("status").getByText("Snapshot kept").waitFor();
      const before = await rows(page).count();
      await row.getByRole("button", { name: `Fork sandbox ${id}` }).click();
      await page.getByLabel("Forks").fill("3");
      await page.keyboard.press("Enter");
      await until("three more", async () => (await rows(page).count()) === before + 3);
      await row.getByRole("button", { name: `Kill sandbox ${id}` }).click();
      await page.getByRole("dialog").getByRole("button", { name: "Kill it" }).click();
      await until("one less", async () => (await rows(page).count()) === before + 2);
      equal(await row.count(), 0, "rows of the killed one");
      await until("the focus on what is left", async () => (await focused()) === "H1");
      await page.getByLabel("Filter sandboxes").fill("paused");
      await until("only the paused one", async () => (await rows(page).count()) === 1);
    },
  ],

  [
    "the tree is walked, forked, paused, woken and compared by keyboard",
    "light",
    async (page) => {
      await go(page, "#/tree");
      const items = page.getByRole("treeitem");
      await items.first().waitFor();
      await items.first().focus();
      const focused = () => page.evaluate(() => document.activeElement.getAttribute("aria-label"));
      equal((await focused()).startsWith("python "), true, "the first is the oldest root");
      await page.keyboard.press("ArrowRight");
      await page.keyboard.press("ArrowLeft");
      equal((await focused()).startsWith("python "), true, "right and left again");
      await page.keyboard.press("c");
      await page.getByText("Choose the snapshot to compare it with.").waitFor();
      await page.keyboard.press("ArrowRight");
      for (let i = 0; i < 8 && !(await focused()).startsWith("jupyter "); i++) await page.keyboard.press("ArrowUp");
      for (let i = 0; i < 8 && !(await focused()).startsWith("jupyter "); i++) await page.keyboard.press("ArrowDown");
      equal((await focused()).startsWith("jupyter "), true, "jupyter is found");
      await page.keyboard.press("c");
      await page.getByRole("heading", { level: 1, name: "From python to jupyter" }).waitFor();
      await page.getByText("jupyter lab --no-browser").waitFor();
      await page.goBack();

      const sandbox = items.filter({ hasText: "sandbox, running" }).first();
      const node = await sandbox.getAttribute("data-node");
      await sandbox.click();
      const chosen = page.getByRole("complementary", { name: "Chosen" });
      const count = await items.count();
      await chosen.getByRole("button", { name: /^Fork sandbox/ }).click();
      await page.getByLabel("Forks").fill("2");
      await page.keyboard.press("Enter");
      await until("a snapshot and two forks more", async () => (await items.count()) === count + 3);
      await chosen.getByRole("button", { name: /^Pause sandbox/ }).click();
      await until("the snapshot of the pause", async () => (await items.count()) === count + 4);
      await page.locator(`[data-node="${node}"]`).filter({ hasText: "paused" }).waitFor();
      await chosen.getByRole("button", { name: /^Wake sandbox/ }).click();
      await page.locator(`[data-node="${node}"]`).filter({ hasText: "running" }).waitFor();
      const width = () => page.locator("svg.graph").evaluate((e) => e.getBoundingClientRect().width);
      const usual = await width();
      await page.getByRole("button", { name: "Smaller" }).click();
      await until("smaller", async () => (await width()) < usual);
      await page.getByLabel("Also disks of images and steps").check();
      await until("the image and the step too", async () => (await items.count()) === count + 6);
    },
  ],

  [
    "a shell is found again after a reload, and a new one follows its end",
    "light",
    async (page) => {
      await open(page, "jupyter", "running");
      await page.getByRole("status").getByText("shell").waitFor();
      await type(page, "export MARK=ab && echo $MARK-cd", "ab-cd");
      await page.getByRole("link", { name: "Logs" }).click();
      await page.getByRole("link", { name: "Terminal" }).click();
      await until("what was there", async () => (await screen(page)).includes("ab-cd"));
      await page.reload();
      await page.getByRole("status").getByText("Back at the shell that runs here.").waitFor();
      await type(page, "echo $MARK-ef", "ab-ef");
      await type(page, "exit 3", "");
      await page.getByRole("status").getByText("The shell is over: exit status 3").waitFor();
      await page.getByRole("button", { name: "New shell" }).click();
      await page.getByRole("status").getByText("A new shell.").waitFor();
      await type(page, "echo [$MARK]", "[]");
      await type(page, "stty size", `${await page.evaluate(() => document.querySelectorAll(".xterm-rows > div").length)} `);
    },
  ],

  [
    "files are uploaded, viewed, downloaded, renamed and deleted",
    "light",
    async (page) => {
      await places.files(page);
      await page.getByLabel("Files to upload").setInputFiles([
        { name: "up load.txt", mimeType: "text/plain", buffer: Buffer.from("all of it ü\n") },
        { name: "pixel.png", mimeType: "image/png", buffer: Buffer.from("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==", "base64") },
      ]);
      const name = (n) => page.getByRole("button", { name: n, exact: true });
      await name("up load.txt").click();
      await page.getByRole("dialog").getByText("all of it ü").waitFor();
      await accessible(page);
      await picture(page, "view-light");
      const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("dialog").getByRole("button", { name: "Download" }).click()]);
      equal(await readFile(await download.path(), "utf8"), "all of it ü\n", "what was downloaded");
      equal(download.suggestedFilename(), "up load.txt", "its name");
      await page.keyboard.press("Escape");
      await name("pixel.png").click();
      await until("a picture", () => page.getByRole("dialog").locator("img").evaluate((i) => i.naturalWidth === 1));
      await page.getByRole("button", { name: "Close" }).click();
      await name("data.bin").click();
      await page.getByRole("dialog").getByText("00000000  de ad be ef 00 c0 ff ee").waitFor();
      await page.keyboard.press("Escape");
      await name("page.html").click();
      await page.getByRole("dialog").getByText("document.title = 'escaped'").waitFor();
      equal((await page.title()).includes("escaped"), false, "a file's script has run");
      await page.keyboard.press("Escape");

      await page.getByRole("button", { name: "Rename up load.txt" }).click();
      await page.getByRole("dialog").getByLabel("Name").fill("a/b");
      await page.keyboard.press("Enter");
      await page.getByRole("dialog").getByRole("alert").getByText("A name has no slash in it.").waitFor();
      await page.getByRole("dialog").getByLabel("Name").fill("renamed.txt");
      await page.keyboard.press("Enter");
      await name("renamed.txt").waitFor();
      equal(await readFile(`${home}/renamed.txt`, "utf8"), "all of it ü\n", "the renamed file");
      await page.getByRole("button", { name: "Delete renamed.txt" }).click();
      await page.getByRole("dialog").getByRole("button", { name: "Delete it" }).click();
      await name("renamed.txt").waitFor({ state: "detached" });
      await page.getByRole("button", { name: "New folder" }).click();
      await page.getByRole("dialog").getByLabel("Name").fill("new");
      await page.keyboard.press("Enter");
      await page.getByRole("link", { name: "new/" }).click();
      await page.getByRole("navigation", { name: "Path" }).getByText("new", { exact: true }).waitFor();
    },
  ],

  [
    "charts and maps are read by keyboard",
    "light",
    async (page) => {
      await places.metrics(page);
      const chart = page.getByRole("slider", { name: "Memory" });
      await chart.focus();
      await page.keyboard.press("Home");
      const first = await chart.getAttribute("aria-valuetext");
      await page.keyboard.press("ArrowRight");
      equal((await chart.getAttribute("aria-valuetext")) !== first, true, "another moment");
      equal(/used [\d.]+ MiB, cache [\d.]+ MiB/.test(first), true, `the reading "${first}"`);
      equal(await page.locator("figure").filter({ hasText: "Memory" }).locator("polyline").count(), 4, "pieces of two lines with a gap each");
      await places.snapshot(page);
      const map = page.getByRole("slider", { name: /^Disk/ });
      await map.focus();
      await page.keyboard.press("ArrowDown");
      equal(/^\d+ KiB at 42\.\d MiB: /.test(await map.getAttribute("aria-valuetext")), true, `the cell "${await map.getAttribute("aria-valuetext")}"`);
    },
  ],

  [
    "logs are filtered",
    "light",
    async (page) => {
      await places.logs(page);
      equal(await page.getByText("keep-alive").count(), 0, "debug lines at first");
      await page.getByLabel("At least").selectOption("debug");
      await page.getByText("keep-alive").waitFor();
      await page.getByLabel("Filter the log").fill("train.py");
      await until("one line", async () => (await page.getByRole("list", { name: /^Log/ }).getByRole("listitem").count()) === 1);
    },
  ],

  [
    "a template is deleted, unless sandboxes stand on it",
    "light",
    async (page) => {
      await places.templates(page);
      await page.getByRole("button", { name: "Delete template python" }).click();
      await page.getByRole("dialog").getByRole("button", { name: "Delete it" }).click();
      await page.getByRole("dialog").getByRole("alert").getByText("sandboxes stand on it").waitFor();
      await page.keyboard.press("Escape");
      await page.getByRole("button", { name: "Delete template jupyter-data" }).click();
      await page.getByRole("dialog").getByRole("button", { name: "Delete it" }).click();
      await page.getByRole("rowheader", { name: "jupyter-data" }).waitFor({ state: "detached" });
    },
  ],

  [
    "what can not be had is said",
    "light",
    async (page) => {
      await go(page, `#/sandboxes/${"0".repeat(32)}/terminal`);
      await page.getByRole("alert").getByText("This does not exist").waitFor();
      await go(page);
      await rows(page).first().waitFor();
      await page.route("**/v2/sandboxes?*", (r) => r.abort());
      await page.getByRole("alert").getByText("spore does not answer").waitFor();
      equal((await rows(page).count()) > 0, true, "what was last known stays");
      await page.unroute("**/v2/sandboxes?*");
      await page.getByRole("alert").getByText("spore does not answer").waitFor({ state: "detached" });
    },
  ],
]);
