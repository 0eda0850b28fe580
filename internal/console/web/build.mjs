// Bundles the console into ../dist, or with --test runs the unit tests. Runs on Node 18 and later.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdir, mkdtemp, readFile, readdir, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import * as esbuild from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = join(here, "..", "dist");

// The content security policy allows no inline styles, which xterm makes in two ways: by style elements and by style attributes.
// Both become calls of src/term/styles.ts, which reach the same through the CSSOM, as the policy allows.
const inlineStyles = {
  name: "no-inline-styles",
  setup(build) {
    build.onLoad({ filter: /[\\/]@xterm[\\/]xterm[\\/]lib[\\/]xterm\.mjs$/ }, async ({ path }) => {
      let text = await readFile(path, "utf8");
      const swap = (pattern, replacement, times) => {
        const found = text.match(pattern)?.length ?? 0;
        if (found !== times) throw new Error(`xterm: ${pattern} found ${found} times, not ${times}: see how this version makes its styles`);
        text = text.replace(pattern, replacement);
      };
      swap(/[\w.]+\.createElement\("style"\)/g, "sporeStyleElement()", 3);
      swap(/(\w+)\.setAttribute\("style",/g, "sporeStyleAttribute($1,", 1);
      // Relative, so that the bundle is the same wherever it is made.
      const styles = JSON.stringify(relative(dirname(path), join(here, "src/term/styles.ts")));
      return { contents: `import { sporeStyleElement, sporeStyleAttribute } from ${styles};\n${text}`, loader: "js" };
    });
  },
};

const common = { bundle: true, format: "esm", jsx: "automatic", jsxImportSource: "preact", target: "es2022", logLevel: "warning" };

/** The licences of all packages that files of a bundle are from. They ask to go with every copy. */
async function licensesOf(files) {
  const packages = new Set(files.map((f) => /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(f)?.[1]).filter((p) => p !== undefined));
  const texts = [];
  for (const p of [...packages].sort()) {
    const { version } = JSON.parse(await readFile(join(here, "node_modules", p, "package.json"), "utf8"));
    texts.push(`${p} ${version}\n\n${(await readFile(join(here, "node_modules", p, "LICENSE"), "utf8")).trim()}\n`);
  }
  return texts.join("\n\n");
}

async function bundle() {
  const staging = join(here, "node_modules", ".dist");
  await rm(staging, { recursive: true, force: true });
  const result = await esbuild.build({
    ...common,
    absWorkingDir: here,
    entryPoints: { app: "src/main.tsx", style: "src/style.css", icon: "src/icon.svg" },
    outdir: join(staging, "assets"),
    entryNames: "[name]-[hash]",
    chunkNames: "[name]-[hash]",
    loader: { ".svg": "copy" },
    legalComments: "none",
    metafile: true,
    minify: true,
    plugins: [inlineStyles],
    splitting: true,
  });
  const licenses = await licensesOf(Object.keys(result.metafile.inputs));
  const named = `licenses-${createHash("sha256").update(licenses).digest("hex").slice(0, 8).toUpperCase()}.txt`;
  await writeFile(join(staging, "assets", named), licenses);
  let page = await readFile(join(here, "src/index.html"), "utf8");
  for (const file of [...Object.keys(result.metafile.outputs), named]) {
    const name = basename(file);
    const entry = /^(app|style|icon|licenses)-[A-Z0-9]{8}\.(js|css|svg|txt)$/.exec(name);
    if (entry) page = page.replaceAll(`{{${entry[1]}}}`, `assets/${name}`);
  }
  if (page.includes("{{")) throw new Error("index.html names something that was not built");
  await writeFile(join(staging, "index.html"), page);

  // index.html comes last: make takes it for the proof that all is there.
  await rm(join(out, "index.html"), { force: true });
  await rm(join(out, "assets"), { recursive: true, force: true });
  await rename(join(staging, "assets"), join(out, "assets"));
  await rename(join(staging, "index.html"), join(out, "index.html"));
  await rm(staging, { recursive: true });
}

async function tests() {
  const files = (await readdir(join(here, "src"), { recursive: true })).filter((f) => f.endsWith(".test.ts"));
  // Node 18.17 is the first whose readdir knows "recursive"; before, only the names at the top came.
  if (files.length === 0) throw new Error("no tests found");
  const dir = await mkdtemp(join(tmpdir(), "spore-console-"));
  try {
    await mkdir(dir, { recursive: true });
    await esbuild.build({
      ...common,
      absWorkingDir: join(here, "src"),
      entryPoints: files,
      outdir: dir,
      outExtension: { ".js": ".mjs" },
      platform: "node",
      sourcemap: "inline",
    });
    const built = (await readdir(dir, { recursive: true })).filter((f) => f.endsWith(".mjs")).map((f) => join(dir, f));
    process.exitCode = spawnSync(process.execPath, ["--test", ...built], { stdio: "inherit" }).status ?? 1;
  } finally {
    await rm(dir, { recursive: true });
  }
}

await (process.argv.includes("--test") ? tests() : bundle());
