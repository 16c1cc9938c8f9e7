import type { ComponentChildren } from "preact";

// Characters that are not seen but change how others look or read: directions, line ends, controls, invisible ones. The
// joiners U+200C and U+200D belong to words and emoji.
const INVISIBLE = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;

function code(character: string): string {
  return `U+${character.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}`;
}

/** A name with its invisible characters written out. */
export function visible(text: string): string {
  return text.replace(INVISIBLE, (character) => `⟨${code(character)}⟩`);
}

/** A name or value from somebody else: text only, kept apart from the text around it, nothing hidden. */
export function Name({ text, class: className }: { text: string; class?: string }) {
  const parts: ComponentChildren[] = [];
  let end = 0;
  for (const match of text.matchAll(INVISIBLE)) {
    if (match.index > end) parts.push(text.slice(end, match.index));
    parts.push(<span class="invisible">{code(match[0])}</span>);
    end = match.index + match[0].length;
  }
  parts.push(text.slice(end));
  return (
    <bdi class={className === undefined ? "name" : `name ${className}`} title={visible(text)}>
      {parts}
    </bdi>
  );
}

/** The address of a value that is a link, and undefined for anything else: only http and https, without a password. */
export function linkOf(value: string): string | undefined {
  if (!/^https?:\/\//i.test(value)) return undefined;
  let url: URL;
  try {
    url = new URL(value);
  } catch {
    return undefined;
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") return undefined;
  return url.username === "" && url.password === "" ? url.href : undefined;
}

/** A leader's value: a link if it is one. */
export function Value({ text, tabIndex }: { text: string; tabIndex?: number }) {
  if (text === "") return <span class="faint">–</span>;
  const href = linkOf(text);
  if (href === undefined) return <Name text={text} />;
  return (
    <a href={href} rel="noopener noreferrer" target="_blank" tabIndex={tabIndex ?? 0}>
      <Name text={text} />
    </a>
  );
}
