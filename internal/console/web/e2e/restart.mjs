// The console before a daemon that was started again, on loopback, where it asks for no key.

import { go, picture, run, type, until } from "./harness.mjs";

await run([
  [
    "what slept is woken, and its shell goes on",
    "light",
    async (page) => {
      await go(page);
      await page.getByRole("rowheader").getByRole("link").click();
      await page.getByRole("status").getByText("The sandbox is paused.").waitFor();
      await page.getByRole("button", { name: /^Wake sandbox/ }).click();
      await page.getByRole("status").getByText("Back at the shell that runs here.").waitFor();
      await type(page, "echo $MARK-survived", "ab-survived");
      await picture(page, "restart");
      await page.getByRole("button", { name: /^Kill sandbox/ }).click();
      await page.getByRole("button", { name: "Kill it" }).click();
      await page.getByText("No sandbox runs or sleeps here.").waitFor();
      await page.getByRole("link", { name: "Tree" }).click();
      await until("the snapshot that was kept", () => page.getByRole("treeitem", { name: /^kept / }).isVisible());
    },
  ],
]);
