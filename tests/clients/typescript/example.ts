// What a program does with the types that openapi-typescript makes: node example.js http://127.0.0.1:8080
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import createClient from "openapi-fetch";
import type { components, paths } from "./balance.js";
import { type Exact, exact, ProblemError } from "./exact.js";

const BEYOND_53_BITS = 9007199254740993n;
const noon = "2026-01-31T12:00:00Z";
const baseUrl = process.argv[2];
assert(baseUrl);

const client = createClient<Exact<paths>, "application/json">({ baseUrl, bodySerializer: exact.bodySerializer });
client.use(exact);
const userId = `a/b 😀 ${randomUUID()}`;
const change = (balanceChange: bigint, timestamp = noon) => ({ userId, context: "example", balanceChange, timestamp });

// A deposit, and the balance before and after it.
const deposit = await client.POST("/changeBalance", { body: change(100n) });
assert.equal(deposit.data?.userId, userId);
assert.equal(deposit.data.balance, 100n);
const path = { userId };
const before = await client.GET("/{userId}/balance", { params: { path, query: { timestamp: "2026-01-31T11:59:59Z" } } });
assert.equal(before.data?.balance, 0n);

// Exact beyond 2^53, as bigint.
const large = await client.POST("/changeBalance", { body: change(BEYOND_53_BITS - 100n) });
assert.equal(large.data?.balance, BEYOND_53_BITS);

// What a client without `exact` makes of it: JavaScript's own JSON.parse rounds.
const plain = createClient<paths>({ baseUrl });
const rounded = await plain.GET("/{userId}/balance", { params: { path } });
assert.equal(rounded.data?.balance, Number(BEYOND_53_BITS - 1n));

// A refused change is a problem: thrown by `exact`, otherwise in `error`.
const later = "2026-01-31T12:00:01Z";
await assert.rejects(client.POST("/changeBalance", { body: change(-2n * BEYOND_53_BITS, later) }), (error) => {
  assert(error instanceof ProblemError);
  assert.equal(error.problem.code, "insufficient_funds" satisfies components["schemas"]["ProblemCode"]);
  assert.equal(error.problem.at, later);
  assert.equal(error.problem.shortfall, BEYOND_53_BITS);
  return true;
});
const refused = await plain.POST("/changeBalance", { body: { ...change(0n, later), balanceChange: -1, timestamp: "2026-01-30T00:00:00Z" } });
assert.equal(refused.error?.code, "insufficient_funds");
assert.equal(refused.error.shortfall, 1);

// Sent twice with one key, applied once.
const header = { "Idempotency-Key": randomUUID() };
const first = await client.POST("/changeBalance", { params: { header }, body: change(-1n) });
const second = await client.POST("/changeBalance", { params: { header }, body: change(-1n) });
assert.deepEqual(second.data, first.data);
assert.equal(first.response.headers.get("Idempotency-Replayed"), null);
assert.equal(second.response.headers.get("Idempotency-Replayed"), "true");

// The history, two operations a page.
const changes: bigint[] = [];
let cursor: string | undefined;
do {
  const page = await client.GET("/{userId}/history", { params: { path, query: { order: "asc", limit: 2n, cursor } } });
  assert(page.data);
  changes.push(...page.data.operations.map((operation) => operation.balanceChange));
  cursor = page.data.nextCursor;
} while (cursor !== undefined);
assert.deepEqual(changes, [100n, BEYOND_53_BITS - 100n, -1n]);

console.log("TypeScript: passed");
