// The pages of the console before the double, each in light, in dark and on a phone: whether a program that judges accessibility objects, whether anything
// sticks out to the side, and a picture for people to judge the rest by.

import { accessible, base, go, home, narrow, picture, type } from "./harness.mjs";

/** How one gets to each page. */
export const places = {
  sandboxes: async (page) => {
    await go(page);
    await page.getByRole("rowheader").first().waitFor();
  },
  templates: async (page) => {
    await go(page, "#/templates");
    await page.getByRole("rowheader", { name: "python" }).waitFor();
  },
  tree: async (page) => {
    await go(page, "#/tree");
    await page.getByRole("treeitem", { name: /^python / }).click();
  },
  snapshot: async (page) => {
    await go(page, "#/tree");
    await page.getByRole("treeitem", { name: /^jupyter-data / }).dblclick();
    await page.getByRole("slider", { name: /^Disk/ }).waitFor();
    await page.getByRole("slider", { name: /^Memory/ }).waitFor();
  },
  diff: async (page) => {
    await go(page, "#/diff/python/jupyter");
    await page.getByText("/etc/hosts").waitFor();
  },
  terminal: async (page) => {
    await open(page, "jupyter", "running");
    await page.getByRole("status").getByText("shell").waitFor();
    await type(page, "printf '\\033[38;2;120;200;120mtrue\\033[0m \\033[31mred\\033[0m\\n'; ls", "notes.txt");
  },
  files: async (page) => {
    await open(page, "python", "running", "files");
    await page.goto(page.url().replace(/files$/, `files?path=${encodeURIComponent(home)}`));
    await page.getByRole("button", { name: "notes.txt", exact: true }).waitFor();
  },
  metrics: async (page) => {
    await open(page, "python", "running", "metrics");
    await page.getByRole("slider", { name: "Memory" }).waitFor();
  },
  logs: async (page) => {
    await open(page, "alpine", "running", "logs");
    await page.getByText("memory is short").waitFor();
  },
  "new sandbox": async (page) => {
    await go(page);
    await page.getByRole("button", { name: "New sandbox" }).click();
    await page.getByRole("dialog").waitFor();
  },
  kill: async (page) => {
    await go(page);
    await page.getByRole("button", { name: /^Kill sandbox/ }).first().click();
    await page.getByRole("dialog").waitFor();
  },
  lost: async (page) => go(page, "#/nowhere"),
};

/** Opens a sandbox of a template that is in a state. */
export async function open(page, template, state, tab = "terminal") {
  await go(page);
  const row = page.getByRole("row").filter({ hasText: template }).filter({ hasText: state }).last();
  const href = await row.getByRole("rowheader").getByRole("link").getAttribute("href");
  await page.goto(`${base}/${href.replace(/terminal$/, tab)}`);
  await page.getByRole("heading", { level: 1, name: /^Sandbox/ }).waitFor();
}

export const rows = (page) => page.getByRole("table", { name: "Sandboxes" }).getByRole("rowheader");

export const appearance = Object.entries(places).flatMap(([name, visit]) =>
  ["light", "dark", "phone"].map((look) => [
    `${name} ${look}`,
    look,
    async (page) => {
      await visit(page);
      await picture(page, `${name.replace(" ", "-")}-${look}`);
      await accessible(page);
      await narrow(page);
    },
  ]),
);
