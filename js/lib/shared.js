// What the pack's extensions share in the page: one memory of the server's answers.

import { api } from "../../../scripts/api.js";
import { Server } from "./server.js";

export const server = new Server(api);
