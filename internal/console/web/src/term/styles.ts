// What xterm's style elements and style attributes become (see build.mjs): the same by means that a strict content security policy allows.

/** An element whose text is a style sheet, in force while the element is in the page. */
class SheetElement extends HTMLElement {
  private readonly sheet = new CSSStyleSheet();

  override get textContent(): string {
    return [...this.sheet.cssRules].map((rule) => rule.cssText).join("\n");
  }

  override set textContent(text: string | null) {
    this.sheet.replaceSync(text ?? "");
  }

  connectedCallback(): void {
    document.adoptedStyleSheets = [...document.adoptedStyleSheets, this.sheet];
  }

  disconnectedCallback(): void {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((s) => s !== this.sheet);
  }
}

customElements.define("spore-sheet", SheetElement);

export function sporeStyleElement(): HTMLElement {
  return document.createElement("spore-sheet");
}

export function sporeStyleAttribute(element: HTMLElement, text: string): void {
  element.style.cssText = text;
}
