// A browser, and checks whose results go to standard output as lines of JSON. What every page must keep is looked at in every check: it asks nobody but its
// own origin, breaks no content security policy, and throws no error.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { chromium } from "playwright-core";

export const { URL: base, KEY: key = "", SHOTS: shots, HOME_DIR: home = "/" } = process.env;

const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** Longest wait for anything that a page is to show. It is no measure of speed: machines may be slow. */
export const patience = 120_000;

/** A check that takes longer hangs: what a page is asked to compute has no limit of its own. */
const longest = 3 * patience;

/** What is not done in time is an error; it may go on, unheeded. */
function within(limit, what, work) {
  let timer;
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error(`not done in ${limit / 1000} s: ${what}`)), limit)));
  return Promise.race([work, late]).finally(() => clearTimeout(timer));
}

export const looks = {
  light: { colorScheme: "light", viewport: { width: 1280, height: 800 } },
  dark: { colorScheme: "dark", viewport: { width: 1280, height: 800 } },
  phone: { colorScheme: "light", viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true },
};

let failed = false;
let browser;
let current = "nothing yet";

// Whoever loses patience with all of it wants to know where it stood.
process.on("SIGTERM", () => {
  console.error(`ended in the middle of: ${current}`);
  process.exit(1);
});

/** Runs the checks in order, each with a fresh page that knows the key. */
export async function run(checks) {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args, headless: true });
  try {
    for (const [name, look, check, options = {}] of checks) await one(name, look, check, options);
  } finally {
    await within(patience, "closing the browser", browser.close()).catch((err) => {
      console.error(err.message);
      failed = true;
    });
  }
  process.exit(failed ? 1 : 0); // whatever still goes on
}

async function one(name, look, check, { signedIn = true } = {}) {
  current = name;
  const context = await browser.newContext({ ...looks[look], acceptDownloads: true, reducedMotion: "reduce" });
  const problems = [];
  try {
    context.setDefaultTimeout(patience);
    if (signedIn && key) await context.addInitScript((k) => sessionStorage.setItem("spore.key", k), key);
    const page = await context.newPage();
    page.on("pageerror", (err) => problems.push(`an error in the page: ${err.stack}`));
    page.on("console", (m) => {
      // The browser tells of every answer of 400 and above; whether those are right is for the check.
      if ((m.type() === "error" || m.type() === "warning") && !m.text().startsWith("Failed to load resource")) problems.push(`the browser complains: ${m.text()}`);
    });
    page.on("request", (r) => {
      if (!r.url().startsWith(base) && !r.url().startsWith("blob:") && !r.url().startsWith("data:")) problems.push(`a request to elsewhere: ${r.url()}`);
    });
    await within(longest, name, check(page));
  } catch (err) {
    problems.unshift(err.stack ?? String(err));
    const page = context.pages()[0];
    if (page && shots) await page.screenshot({ path: join(shots, `failed-${name.replace(/\W+/g, "-")}.png`) }).catch(() => undefined);
  }
  await within(patience, "closing the page", context.close()).catch((err) => problems.push(err.message));
  if (problems.length > 0) failed = true;
  console.log(JSON.stringify({ name, error: problems.join("\n") }));
}

export async function go(page, hash = "") {
  await page.goto(`${base}/${hash}`);
  await page.locator("h1").first().waitFor();
}

export async function picture(page, name) {
  if (shots) await page.screenshot({ path: join(shots, `${name}.png`), fullPage: true });
}

export function equal(got, want, what) {
  if (got !== want) throw new Error(`${what}: ${JSON.stringify(got)}, not ${JSON.stringify(want)}`);
}

/** Waits until a function returns something true. */
export async function until(what, f) {
  const end = Date.now() + patience;
  for (;;) {
    const got = await f();
    if (got) return got;
    if (Date.now() > end) throw new Error(`waited in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** The rules of accessibility, as far as a program can judge them. */
export async function accessible(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  if (violations.length > 0) {
    throw new Error(violations.map((v) => `${v.id}: ${v.help}\n${v.nodes.slice(0, 4).map((n) => `  ${n.html}\n  ${n.failureSummary.replace(/\s+/g, " ")}`).join("\n")}`).join("\n"));
  }
}

/** Nothing sticks out to the side. */
export async function narrow(page) {
  const { inside, wide } = await page.evaluate(() => {
    const width = document.documentElement.clientWidth;
    const scrolls = (e) => e && (["auto", "scroll", "hidden"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
    const out = [...document.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right > width + 1 && !scrolls(e.parentElement));
    return { inside: document.documentElement.scrollWidth <= width, wide: out.slice(0, 5).map((e) => e.outerHTML.slice(0, 160)) };
  });
  if (!inside || wide.length > 0) throw new Error(`wider than the screen:\n${wide.join("\n")}`);
}

/** All that the terminal shows. */
export function screen(page) {
  return page.locator(".xterm-rows").innerText();
}

/** Types a command into the terminal and waits for what it prints. */
export async function type(page, command, want) {
  await page.locator(".xterm-helper-textarea").focus();
  await page.keyboard.type(`${command}\n`);
  await until(`${JSON.stringify(want)} after ${command}`, async () => (await screen(page)).includes(want));
}
