import { useState } from "preact/hooks";
import { key } from "../api/http.ts";
import { Field } from "../ui/dialog.tsx";
import { Heading } from "../ui/states.tsx";

/** Asks for the API key. */
export function SignIn({ onKey }: { onKey: (value: string) => void }) {
  const [value, setValue] = useState("");
  return (
    <main class="signin">
      <Heading>spore</Heading>
      <form
        onSubmit={(e) => {
          e.preventDefault();
          if (value.trim() !== "") onKey(value.trim());
        }}
      >
        <p role="alert">{key.get() === null ? "This daemon asks for an API key." : "The daemon does not know this key."}</p>
        <Field label="API key" hint="Made by `spore key create`. It stays in this browser tab and is gone with it.">
          {(id, described) => (
            <input
              id={id}
              type="password"
              autocomplete="off"
              required
              autoFocus
              aria-describedby={described}
              value={value}
              onInput={(e) => setValue(e.currentTarget.value)}
            />
          )}
        </Field>
        <div class="row end">
          <button type="submit" class="primary">
            Go on
          </button>
        </div>
      </form>
    </main>
  );
}
