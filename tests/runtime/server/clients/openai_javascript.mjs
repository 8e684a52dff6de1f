// OpenAI's JavaScript client, unchanged, against a server: `node openai_javascript.mjs URL MODEL`, where
// the folder it runs in has node_modules.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const OpenAI = createRequire(process.cwd() + "/")("openai").default;
const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What will the weather be in Oslo?" }];
const parameters = {
  type: "object",
  properties: { city: { enum: ["Rome", "Oslo"] } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "forecast", parameters } }];

assert.deepEqual((await client.models.list()).data.map((one) => one.id), [model]);

const asked = { model, messages, max_tokens: 12, temperature: 0 };
const whole = await client.chat.completions.create(asked);
let said = "";
let usage = null;
for await (const chunk of await client.chat.completions.create({
  ...asked, stream: true, stream_options: { include_usage: true },
})) {
  said += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(said, whole.choices[0].message.content);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);

const called = { model, messages, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 400 };
for (const made of [
  await client.chat.completions.create(called),
  await client.chat.completions.stream(called).finalChatCompletion(),
]) {
  const [call] = made.choices[0].message.tool_calls;
  assert.equal(made.choices[0].finish_reason, "tool_calls");
  assert.equal(call.function.name, "forecast");
  assert.ok(["Rome", "Oslo"].includes(JSON.parse(call.function.arguments).city));
}

const response = await client.responses.create({ model, input: "Hi", max_output_tokens: 12 });
assert.equal((await client.responses.retrieve(response.id)).output_text, response.output_text);

const stream = await client.chat.completions.create({ ...asked, max_tokens: 1000, stream: true });
for await (const _ of stream) break; // closes the connection
await assert.rejects(client.chat.completions.create({ ...asked, model: "gpt-9" }), { status: 404 });
