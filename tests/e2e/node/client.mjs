// The official Node SDK, unmodified: does what test_openai_node.py asks and prints what came, as JSON.
import { createRequire } from "node:module";
const OpenAI = createRequire(process.env.TOOLS + "/")("openai").default;
const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, timeout: 120_000 });
const model = process.env.MODEL;
const messages = [{ role: "user", content: "Hello!" }];

const chat = await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 60 });
let streamed = "";
let finish = null;
let usage = null;
for await (const chunk of await client.chat.completions.create({
  model, messages, temperature: 0, max_tokens: 60, stream: true, stream_options: { include_usage: true },
})) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  finish = chunk.choices[0]?.finish_reason ?? finish;
  usage = chunk.usage ?? usage;
}
const embedding = await client.embeddings.create({ model, input: "Hello there" });
const models = [];
for await (const item of client.models.list()) models.push(item.id);

async function failure(call) {
  try {
    await call();
    return null;
  } catch (error) {
    return { name: error.constructor.name, status: error.status, code: error.code, request: Boolean(error.requestID) };
  }
}
const wrong = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "wrong", maxRetries: 0 });
console.log(JSON.stringify({
  chat: chat.choices[0].message.content, chatUsage: chat.usage, streamed, finish, usage,
  dimensions: embedding.data[0].embedding.length, models,
  unknownKey: await failure(() => wrong.models.list()),
  unknownModel: await failure(() => client.chat.completions.create({ model: "none", messages })),
  badValue: await failure(() => client.chat.completions.create({ model, messages, temperature: 9 })),
}));
