// The console before a real daemon, which test/console starts: one sandbox is taken through its whole life, in real machines.

import { accessible, base, go, narrow, picture, run, type, until } from "./harness.mjs";

const template = process.env.TEMPLATE;

/** What later checks need to know of what earlier ones made. */
const made = {};

const badge = (page, state) => page.locator(".head .badge").getByText(state).waitFor();

async function open(page, id, tab) {
  await page.goto(`${base}/#/sandboxes/${id}/${tab}`);
  await page.getByRole("heading", { level: 1, name: /^Sandbox/ }).waitFor();
}

async function act(page, name, confirm) {
  await page.locator(".head").getByRole("button", { name }).click();
  if (confirm) await confirm(page.getByRole("dialog"));
}

const nodes = (page) => page.getByRole("treeitem");

await run([
  [
    "a sandbox is made, and a command's output seen",
    "light",
    async (page) => {
      await go(page);
      await page.getByText("No sandbox runs or sleeps here.").waitFor();
      await page.getByRole("button", { name: "New sandbox" }).click();
      await page.getByLabel("Template").fill(template);
      await page.getByLabel("Metadata").fill("made by=a browser");
      await page.getByRole("button", { name: "Create" }).click();
      await page.getByRole("heading", { level: 1, name: /^Sandbox/ }).waitFor();
      made.id = await page.locator("h1 code").getAttribute("title");
      await page.getByRole("status").getByText("A new shell.").waitFor();
      await type(page, "MARK=ab; echo $((6*7)) $MARK-cd", "42 ab-cd");
      await page.getByText("a browser").waitFor();
      await picture(page, "daemon-terminal");
      await accessible(page);
    },
  ],
  [
    "a file is uploaded and viewed",
    "light",
    async (page) => {
      await open(page, made.id, "files?path=%2Froot");
      await page.getByLabel("Files to upload").setInputFiles([{ name: "from browser.txt", mimeType: "text/plain", buffer: Buffer.from("through the daemon ü\n") }]);
      await page.getByRole("button", { name: "from browser.txt", exact: true }).click();
      await page.getByRole("dialog").getByText("through the daemon ü").waitFor();
      await page.keyboard.press("Escape");
      await open(page, made.id, "terminal");
      await page.getByRole("status").getByText("Back at the shell that runs here.").waitFor();
      await type(page, "cat '/root/from browser.txt'", "through the daemon ü");
    },
  ],
  [
    "it is measured and has a log",
    "phone",
    async (page) => {
      await open(page, made.id, "metrics");
      const memory = page.getByRole("slider", { name: "Memory" });
      await memory.waitFor();
      await until("the reading", async () => /used [\d.]+ MiB/.test(await memory.getAttribute("aria-valuetext")));
      await narrow(page);
      await accessible(page);
      await picture(page, "daemon-metrics");
      await open(page, made.id, "logs");
      await page.getByRole("list", { name: /^Log/ }).getByRole("listitem").first().waitFor();
      await narrow(page);
      await picture(page, "daemon-logs");
    },
  ],
  [
    "it is paused and woken, and its shell goes on",
    "dark",
    async (page) => {
      await open(page, made.id, "terminal");
      await page.getByRole("status").getByText("Back at the shell that runs here.").waitFor();
      await act(page, /^Pause/);
      await badge(page, "paused");
      await page.getByRole("status").getByText("The sandbox is paused. Its shell goes on when it wakes.").waitFor();
      await picture(page, "daemon-paused");
      await act(page, /^Wake/);
      await badge(page, "running");
      await page.getByRole("status").getByText("Back at the shell that runs here.").waitFor();
      await type(page, "echo $MARK-woken", "ab-woken");
    },
  ],
  [
    "it is forked in the tree, and the fork has its shell",
    "light",
    async (page) => {
      await go(page, "#/tree");
      const mine = page.locator(`[data-node="${made.id}"]`);
      await mine.click();
      const before = await nodes(page).count();
      const chosen = page.getByRole("complementary", { name: "Chosen" });
      await chosen.getByRole("button", { name: /^Fork/ }).click();
      await page.getByLabel("Forks").fill("2");
      await page.keyboard.press("Enter");
      await until("the fork's snapshot and two sandboxes more", async () => (await nodes(page).count()) >= before + 3);
      await picture(page, "daemon-tree");
      await accessible(page);
      const forks = await page.locator(".node.sandbox").evaluateAll((all) => all.map((e) => e.getAttribute("data-node")));
      made.fork = forks.find((id) => id !== made.id);
      await page.locator(`[data-node="${made.fork}"]`).dblclick();
      await page.getByRole("status").getByText("Back at the shell that runs here.").waitFor();
      await type(page, "echo $MARK-forked > /root/of-fork; cat /root/of-fork", "ab-forked");
      await act(page, /^Snapshot/, async (dialog) => {
        await dialog.getByLabel("Name").fill("kept");
        await page.keyboard.press("Enter");
      });
      await page.getByRole("status").getByText("Snapshot kept").waitFor();
    },
  ],
  [
    "two snapshots are compared, and one is looked into",
    "light",
    async (page) => {
      await go(page, `#/diff/${template}/kept`);
      await page.getByRole("listitem").filter({ hasText: "/root/of-fork" }).getByText("added").waitFor();
      await page.getByRole("listitem").filter({ hasText: "/root/from browser.txt" }).waitFor();
      await page.getByRole("img", { name: /^Memory: \d+ regions? of / }).waitFor();
      await picture(page, "daemon-diff");
      await accessible(page);
      await go(page, "#/snapshots/kept");
      const memory = page.getByRole("slider", { name: /^Memory/ });
      await memory.focus();
      await page.keyboard.press("End");
      await until("the last cell", async () => / at [\d.]+ MiB: /.test(await memory.getAttribute("aria-valuetext")));
      await page.getByText("(its own)").first().waitFor();
      await picture(page, "daemon-snapshot");
      await accessible(page);
    },
  ],
  [
    "two are killed and one sleeps, and the list says so at once",
    "phone",
    async (page) => {
      await go(page);
      const rows = page.getByRole("table", { name: "Sandboxes" }).getByRole("rowheader");
      await until("three sandboxes", async () => (await rows.count()) === 3);
      await narrow(page);
      await picture(page, "daemon-sandboxes");
      const id = made.id.slice(0, 8);
      await page.getByRole("button", { name: `Pause sandbox ${id}` }).click();
      await page.getByRole("button", { name: `Wake sandbox ${id}` }).waitFor();
      const others = page.getByRole("button", { name: /^Kill sandbox/ }).and(page.locator(`:not([aria-label$="${id}"])`));
      for (let left = 2; left >= 1; left--) {
        await others.first().click();
        await page.getByRole("button", { name: "Kill it" }).click();
        await until(`${left} left`, async () => (await rows.count()) === left);
      }
      await page.goto(`${base}/#/sandboxes/${made.fork}/terminal`);
      await page.getByRole("alert").getByText("This does not exist").waitFor();
    },
  ],
]);
