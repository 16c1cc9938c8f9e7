import { useState } from "preact/hooks";
import { login, token, tokenWanted } from "../api/client";
import { visible } from "../parts/text";

/**
 * What a person gave as a token, without the scheme before it, and what is wrong with it: a header holds ASCII only, and
 * what was copied from a terminal or a document may have more.
 */
export function tokenOf(text: string): { token: string; wrong: string } {
  const token = text.trim().replace(/^bearer\s+/i, "");
  if (token === "") return { token, wrong: "Give the token." };
  if (/^[\x21-\x7e]+$/.test(token)) return { token, wrong: "" };
  const what = /\s/.test(token) ? "spaces or line breaks in it" : "characters that a token cannot have";
  return { token, wrong: `This text has ${what}: copy the token again.` };
}

/** Asks for a token. It stays in this page's memory. */
export function LoginPage() {
  const [text, setText] = useState("");
  const [wrong, setWrong] = useState("");
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
            const given = tokenOf(text);
            setWrong(given.wrong);
            if (given.wrong === "") login(given.token);
          }}
        >
          <label>
            Bearer token
            <input
              type="password"
              value={text}
              autofocus
              aria-invalid={wrong !== ""}
              {...(wrong === "" ? {} : { "aria-describedby": "wrong" })}
              autoComplete="off"
              spellcheck={false}
              onInput={(event) => setText(event.currentTarget.value)}
            />
          </label>
          {wrong !== "" && (
            <p id="wrong" role="alert">
              {wrong}
            </p>
          )}
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
