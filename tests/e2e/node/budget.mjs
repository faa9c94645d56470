// The official Node SDK, unmodified: a stream that a budget ends, and the refusal after it (test_budgets.py).
import { createRequire } from "node:module";
const OpenAI = createRequire(process.env.TOOLS + "/")("openai").default;
const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, timeout: 60_000 });
const asked = { model: process.env.MODEL, messages: [{ role: "user", content: "Hello!" }] };

let last = null;
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) last = chunk;
let refused = null; // until the answer is settled there is hope, so the SDK tries again; then the budget is spent
for (const deadline = Date.now() + 60_000; refused?.code !== "insufficient_quota" && Date.now() < deadline; ) {
  try {
    await client.chat.completions.create(asked);
  } catch (error) {
    const { status, code, requestID } = error;
    refused = { name: error.constructor.name, status, code, request: Boolean(requestID) };
  }
}
console.log(JSON.stringify({ finish: last.choices[0].finish_reason, detail: last["x-uplion"], refused }));
