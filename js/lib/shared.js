// What the pack's extensions share in the page: one memory of the server's answers.

import { api } from "../../../scripts/api.js";
import { t } from "./language.js";
import { Server } from "./server.js";

export const server = new Server(api, t);

// A run may have written a concept file, or loaded another encoder. Here, so that nothing known from
// before it is left when the extensions look again.
for (const event of ["execution_success", "execution_error", "execution_interrupted"]) {
  api.addEventListener(event, () => server.ran());
}
