// What has happened, shown for a while and said to screen readers.

import { createContext } from "preact";
import type { ComponentChildren } from "preact";
import { useCallback, useContext, useMemo, useRef, useState } from "preact/hooks";
import { reason } from "./format.ts";

interface Notice {
  id: number;
  text: string;
  bad: boolean;
}

export interface Notices {
  tell: (text: string) => void;
  complain: (doing: string, err: unknown) => void;
}

const Context = createContext<Notices>({ tell: () => undefined, complain: () => undefined });

export const useNotices = (): Notices => useContext(Context);

const shownFor = 6000;

export function NoticeBoard({ children }: { children: ComponentChildren }) {
  const [notices, setNotices] = useState<Notice[]>([]);
  const next = useRef(0);
  const remove = useCallback((id: number) => setNotices((all) => all.filter((n) => n.id !== id)), []);
  const add = useCallback((text: string, bad: boolean) => {
    const id = next.current++;
    setNotices((all) => [...all.slice(-3), { id, text, bad }]);
    // Bad news stays until it is put away.
    if (!bad) setTimeout(() => remove(id), shownFor);
  }, []);
  const value = useMemo<Notices>(() => ({ tell: (text) => add(text, false), complain: (doing, err) => add(`${doing}: ${reason(err)}`, true) }), []);
  const list = (bad: boolean) =>
    notices
      .filter((n) => n.bad === bad)
      .map((n) => (
        <div key={n.id} class={n.bad ? "notice bad" : "notice"}>
          <span>{n.text}</span>
          <button type="button" class="quiet" aria-label="Put this notice away" onClick={() => remove(n.id)}>
            ×
          </button>
        </div>
      ));
  return (
    <Context.Provider value={value}>
      {children}
      <div class="notices">
        <div role="status">{list(false)}</div>
        <div role="alert">{list(true)}</div>
      </div>
    </Context.Provider>
  );
}
