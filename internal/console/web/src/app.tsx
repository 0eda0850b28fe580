import { useEffect, useState } from "preact/hooks";
import { key, onRefused } from "./api/http.ts";
import { spore } from "./api/spore.ts";
import { DiffPage } from "./pages/diff.tsx";
import { SandboxPage } from "./pages/sandbox.tsx";
import { SandboxesPage } from "./pages/sandboxes.tsx";
import { SignIn } from "./pages/signin.tsx";
import { SnapshotPage } from "./pages/snapshot.tsx";
import { TemplatesPage } from "./pages/templates.tsx";
import { TreePage } from "./pages/tree.tsx";
import { parse, to } from "./route.ts";
import type { Route } from "./route.ts";
import { short } from "./ui/format.ts";
import { NoticeBoard } from "./ui/notices.tsx";
import { Heading } from "./ui/states.tsx";
import { usePoll } from "./ui/use.ts";

export function App() {
  const [route, setRoute] = useState(() => parse(location.hash));
  const [refused, setRefused] = useState(false);
  useEffect(() => {
    const moved = (): void => setRoute(parse(location.hash));
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  useEffect(() => onRefused(() => setRefused(true)), []);
  return (
    <NoticeBoard>
      {refused ? (
        <SignIn
          onKey={(value) => {
            key.set(value);
            setRefused(false);
          }}
        />
      ) : (
        <Shell
          route={route}
          onForget={() => {
            key.forget();
            setRefused(true);
          }}
        />
      )}
    </NoticeBoard>
  );
}

function Shell({ route, onForget }: { route: Route; onForget: () => void }) {
  const info = usePoll("info", (signal) => spore.info(signal), 60_000);
  const place = placeOf(route);
  // Another tab of the same sandbox is not another place: the focus stays on the tab.
  useEffect(() => {
    document.title = `${titleOf(route)} · spore`;
  }, [titleOf(route)]);
  const [entered, setEntered] = useState(place);
  useEffect(() => {
    if (entered === place) return;
    setEntered(place);
    document.querySelector<HTMLElement>("[data-heading]")?.focus();
    scrollTo(0, 0);
  }, [place]);
  const link = (href: string, text: string, pages: Route["page"][]) => (
    <a href={href} aria-current={pages.includes(route.page) ? "page" : undefined}>
      {text}
    </a>
  );
  return (
    <>
      <a
        class="skip"
        href="#main"
        onClick={(e) => {
          e.preventDefault();
          document.getElementById("main")?.focus();
        }}
      >
        Skip to the content
      </a>
      <header class="top">
        <a class="brand" href={to.sandboxes}>
          <Mark />
          spore
        </a>
        <nav aria-label="Main">
          {link(to.sandboxes, "Sandboxes", ["sandboxes", "sandbox"])}
          {link(to.templates, "Templates", ["templates"])}
          {link(to.tree(), "Tree", ["tree", "snapshot", "diff"])}
        </nav>
        {key.get() !== null && (
          <button type="button" class="quiet" onClick={onForget}>
            Forget key
          </button>
        )}
      </header>
      <main id="main" tabindex={-1}>
        <Page route={route} />
      </main>
      <footer class="dim row">
        <span>{info.data ? `spore ${info.data.version} on ${info.data.engine.name}, ${info.data.engine.accel}` : "spore"}</span>
        <a href={document.querySelector<HTMLLinkElement>("link[rel=license]")?.href ?? ""}>Licences of what this page is made of</a>
      </footer>
    </>
  );
}

function Page({ route }: { route: Route }) {
  switch (route.page) {
    case "sandboxes":
      return <SandboxesPage />;
    case "sandbox":
      return <SandboxPage key={route.id} id={route.id} tab={route.tab} path={route.path} />;
    case "templates":
      return <TemplatesPage />;
    case "tree":
      return <TreePage focus={route.focus} />;
    case "snapshot":
      return <SnapshotPage key={route.id} id={route.id} />;
    case "diff":
      return <DiffPage key={`${route.a} ${route.b}`} a={route.a} b={route.b} />;
    case "lost":
      return (
        <>
          <Heading>There is nothing here</Heading>
          <p>
            The address leads nowhere. <a href={to.sandboxes}>To the sandboxes</a>
          </p>
        </>
      );
  }
}

function placeOf(route: Route): string {
  return route.page === "sandbox" ? `sandbox ${route.id}` : JSON.stringify({ ...route, focus: undefined });
}

function titleOf(route: Route): string {
  switch (route.page) {
    case "sandbox":
      return `${short(route.id)}, ${route.tab}`;
    case "snapshot":
      return `Snapshot ${short(route.id)}`;
    case "diff":
      return `${short(route.a)} and ${short(route.b)}`;
    case "lost":
      return "Nothing here";
    default:
      return route.page[0]!.toUpperCase() + route.page.slice(1);
  }
}

/** The house's mark: a spore and the six that come of it. */
function Mark() {
  return (
    <svg class="mark" viewBox="0 0 32 32" aria-hidden="true" focusable="false">
      <circle cx="16" cy="16" r="6" />
      {[0, 60, 120, 180, 240, 300].map((angle) => (
        <circle key={angle} cx="16" cy="4.5" r="2.5" transform={`rotate(${angle} 16 16)`} />
      ))}
    </svg>
  );
}
