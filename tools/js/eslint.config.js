// How `make lint` reads the JavaScript: ESLint's recommended rules and what this pack promises beside
// them, above all that nothing of the page's is overwritten. Users get none of this.

import { createRequire } from "node:module";

// The rules that come with the ESLint that runs: set-up keeps it in .comfyui/, not in this checkout.
const require = createRequire(process.argv[1]);
const js = require("@eslint/js");
const globals = require("globals");

export default [
  { linterOptions: { reportUnusedDisableDirectives: "error" } },
  js.configs.recommended,
  {
    rules: {
      // `!= null` asks for null and undefined at once: the frontend uses both for "no link".
      eqeqeq: ["error", "always", { null: "ignore" }],
      "no-eval": "error",
      "no-extend-native": "error",
      "no-implied-eval": "error",
      "no-misleading-character-class": ["error", { allowEscape: true }],
      "no-new-func": "error",
      "no-restricted-syntax": [
        "error",
        {
          selector: "AssignmentExpression[left.object.property.name='prototype']",
          message: "Overwrite no prototype: use an extension's hooks, or after() on one node.",
        },
        {
          selector: "AssignmentExpression[left.property.name='prototype']",
          message: "Overwrite no prototype: use an extension's hooks, or after() on one node.",
        },
      ],
      "no-undef": "error",
      "no-unused-vars": "error",
      "no-var": "error",
      "prefer-const": "error",
    },
  },
  { files: ["js/**"], languageOptions: { globals: globals.browser } },
  { files: ["tests/js/**", "tools/js/**"], languageOptions: { globals: globals.node } },
];
