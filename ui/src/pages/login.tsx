import { useState } from "preact/hooks";
import { login, token, tokenWanted } from "../api/client";
import { visible } from "../parts/text";

/** Asks for a token. It stays in this page's memory. */
export function LoginPage() {
  const [text, setText] = useState("");
  const detail = tokenWanted.value ?? "";
  const refused = token.value !== "";
  return (
    <section class="page" aria-labelledby="title">
      <h1 id="title" tabIndex={-1}>
        Who are you?
      </h1>
      <div class="card login">
        <p role="alert">
          {refused
            ? "The agent does not accept this token (401): it is wrong, or its time is over."
            : "The agent answers only callers that it knows (401)."}{" "}
          {detail !== "" && <span class="detail">{visible(detail)}</span>}
        </p>
        <form
          onSubmit={(event) => {
            event.preventDefault();
            if (text.trim() !== "") login(text);
          }}
        >
          <label>
            Bearer token
            <input
              type="password"
              value={text}
              required
              autofocus
              autoComplete="off"
              spellcheck={false}
              onInput={(event) => setText(event.currentTarget.value)}
            />
          </label>
          <div class="buttons">
            <button type="submit" class="primary">
              Use this token
            </button>
          </div>
        </form>
        <p class="faint">
          The token is kept in the memory of this page only, and is sent in a header to this agent. It is gone when the page is
          closed or loaded again.
        </p>
      </div>
    </section>
  );
}
