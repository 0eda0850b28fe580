import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { reason } from "./format.ts";

interface DialogProps {
  title: string;
  action: string; // what the button that does it says
  danger?: boolean;
  children: ComponentChildren;
  /** Does it. An error stays in the dialog, success closes it. */
  onAct: () => Promise<void>;
  onClose: () => void;
}

/** A question with one way to do it and one way out. It is the browser's own dialog: focus stays inside, Escape leaves, and focus returns to where it was. */
export function Dialog({ title, action, danger, children, onAct, onClose }: DialogProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  const id = useId();
  useEffect(() => {
    const before = document.activeElement;
    const d = dialog.current!;
    d.showModal();
    return () => {
      d.close();
      // What was asked about may be gone, and the button with it.
      const back = before instanceof HTMLElement && before.isConnected ? before : document.querySelector<HTMLElement>("[data-heading]");
      back?.focus();
    };
  }, []);
  const act = async (e: Event): Promise<void> => {
    e.preventDefault();
    if (busy) return;
    setBusy(true);
    setError("");
    try {
      await onAct();
      onClose();
    } catch (err) {
      setError(reason(err));
      setBusy(false);
    }
  };
  return (
    <dialog
      ref={dialog}
      aria-labelledby={id}
      onCancel={(e) => {
        e.preventDefault();
        if (!busy) onClose();
      }}
    >
      <form onSubmit={act}>
        <h2 id={id}>{title}</h2>
        {children}
        <p role="alert" class="error">
          {error}
        </p>
        <div class="row end">
          <button type="button" onClick={onClose} disabled={busy}>
            Cancel
          </button>
          <button type="submit" class={danger ? "primary danger" : "primary"} aria-disabled={busy}>
            {busy ? "One moment…" : action}
          </button>
        </div>
      </form>
    </dialog>
  );
}

interface FieldProps {
  label: string;
  hint?: string;
  children: (id: string, described: string | undefined) => ComponentChildren;
}

/** A labelled control. */
export function Field({ label, hint, children }: FieldProps) {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {children(id, hint ? `${id}-hint` : undefined)}
      {hint && (
        <small id={`${id}-hint`} class="dim">
          {hint}
        </small>
      )}
    </div>
  );
}

interface NumberProps {
  label: string;
  hint?: string;
  value: number;
  min: number;
  max: number;
  onValue: (value: number) => void;
}

export function NumberField({ label, hint, value, min, max, onValue }: NumberProps) {
  return (
    <Field label={label} {...(hint && { hint })}>
      {(id, described) => (
        <input
          id={id}
          type="number"
          required
          min={min}
          max={max}
          value={value}
          {...(described && { "aria-describedby": described })}
          onInput={(e) => onValue(e.currentTarget.valueAsNumber)}
        />
      )}
    </Field>
  );
}
