import { render } from "preact";
import { followAgentInfo } from "./agent-info";
import { App } from "./app";

render(<App />, document.getElementById("app")!);
// After the page's own calls: the first row matters more than the agent's name.
followAgentInfo();
