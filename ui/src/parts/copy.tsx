import { useEffect, useState } from "preact/hooks";

async function copy(text: string): Promise<void> {
  // Pages from plain HTTP have no clipboard but on localhost.
  if (navigator.clipboard !== undefined) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "sr";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("the browser does not permit it");
}

/** A text in a frame, with a button that copies it. */
export function Copyable({ title, text, note }: { title: string; text: string; note?: string | undefined }) {
  const [said, setSaid] = useState("");
  useEffect(() => {
    if (said === "") return;
    const timer = setTimeout(() => setSaid(""), 3_000);
    return () => clearTimeout(timer);
  }, [said]);
  return (
    <div class="copyable">
      <div class="copyable-head">
        <h3>{title}</h3>
        <span role="status">{said}</span>
        <button
          type="button"
          aria-label={`Copy ${title}`}
          onClick={() => copy(text).then(() => setSaid("Copied"), () => setSaid("Not copied: select and copy it"))}
        >
          Copy
        </button>
      </div>
      <pre dir="ltr" tabIndex={0} role="region" aria-label={title}>
        <code>{text}</code>
      </pre>
      {note !== undefined && <p class="faint">{note}</p>}
    </div>
  );
}
