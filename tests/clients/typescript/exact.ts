// Whole numbers as bigint, which JSON.parse would round beyond 2^53; a middleware for openapi-fetch.
import { parse, parseNumberAndBigInt, stringify } from "lossless-json";
import type { components } from "./balance.js";

/** The generated types with bigint for number: every number of the document is a whole one. */
export type Exact<T> = T extends number ? bigint : T extends object ? { [K in keyof T]: Exact<T[K]> } : T;

/** A refused or failed request. */
export class ProblemError extends Error {
  constructor(readonly problem: Exact<components["schemas"]["Problem"]>) {
    super(problem.detail);
  }
}

/** Parses answers without loss; throws what is not a success. */
export const exact = {
  bodySerializer: (body: unknown) => stringify(body) ?? "",

  async onResponse({ response }: { response: Response }): Promise<Response> {
    const body = parse(await response.text(), undefined, parseNumberAndBigInt);
    if (!response.ok) {
      throw new ProblemError(body as ProblemError["problem"]);
    }
    // With a length openapi-fetch calls json(), which is ours.
    const headers = new Headers(response.headers);
    headers.set("Content-Length", "1");
    return Object.assign(new Response(null, { status: response.status, headers }), { json: async () => body });
  },
};
