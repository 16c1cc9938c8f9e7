import { render } from "preact";
import { followAgentInfo } from "./agent-info";
import { App } from "./app";

followAgentInfo();
render(<App />, document.getElementById("app")!);
