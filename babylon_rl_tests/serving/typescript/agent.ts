// An agent as the application's are: the openai package with another base URL and key, and the trajectory over HTTP.
// It reads OPENAI_BASE_URL and OPENAI_API_KEY, plays one decision, and prints what it got as JSON.

import OpenAI from "openai";

const client = new OpenAI(); // base URL and key from the environment
const agentId = process.argv[2] ?? "typescript-agent";
const messages: OpenAI.ChatCompletionMessageParam[] = [
  { role: "system", content: "You trade." },
  { role: "user", content: "News: ACME rises. BUY, SELL or HOLD? ünïcödé ✓" },
];

async function post(path: string, body: unknown): Promise<Record<string, unknown>> {
  const answer = await fetch(`${client.baseURL}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: `Bearer ${client.apiKey}` },
    body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return (await answer.json()) as Record<string, unknown>;
}

async function main(): Promise<void> {
  const started = await post("/trajectories", { agentId });
  const trajectoryId = String(started.trajectoryId);
  const headers = { "X-Babylon-Agent": agentId, "X-Babylon-Trajectory": trajectoryId, "X-Babylon-Step": "0" };

  const { data: plain, response } = await client.chat.completions
    .create({ model: "babylon", messages, max_tokens: 8, seed: 1 }, { headers })
    .withResponse();

  const stream = await client.chat.completions.create(
    { model: "babylon", messages, max_tokens: 8, seed: 1, stream: true },
    { headers: { "X-Babylon-Agent": agentId } },
  );
  let streamed = "";
  for await (const chunk of stream) streamed += chunk.choices[0]?.delta?.content ?? "";

  await post(`/trajectories/${trajectoryId}/steps`, {
    stepNumber: 0,
    timestamp: Date.now(),
    environmentState: { agentBalance: 1000, agentPnL: 0, openPositions: 0 },
    providerAccesses: [],
    llmCalls: [],
    action: { actionType: "hold", parameters: {}, success: true },
    reward: 0,
  });
  await post(`/trajectories/${trajectoryId}/end`, { finalStatus: "completed", finalBalance: 1000, finalPnL: 0 });

  let refused = 0;
  try {
    await client.withOptions({ apiKey: "brl_wrong", maxRetries: 0 }).chat.completions.create({ model: "babylon", messages });
  } catch (error) {
    if (error instanceof OpenAI.APIError) refused = error.status ?? 0;
    else throw error;
  }

  const models: string[] = [];
  for await (const model of client.models.list()) models.push(model.id);

  console.log(
    JSON.stringify({
      trajectoryId,
      text: plain.choices[0]?.message.content,
      usage: plain.usage,
      logprobs: plain.choices[0]?.logprobs ?? null,
      checkpoint: response.headers.get("x-babylon-checkpoint"),
      streamed,
      refused,
      models,
    }),
  );
}

await main();
