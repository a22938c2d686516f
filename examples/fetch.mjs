// `pad serve` from JavaScript, in Node 18 or later or in a browser (which needs --cors-origin): a guided reply, streamed.
//
// pad serve BUNDLE
// node examples/fetch.mjs MODEL '{"cheerful": 1}' [http://127.0.0.1:8080/v1]

export async function* streamReply(url, model, question, weights) {
  const response = await fetch(`${url}/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      model,
      messages: [{ role: "user", content: question }],
      temperature: 0,
      max_tokens: 64,
      stream: true,
      pad: { weights },
    }),
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  let text = "";
  for await (const bytes of response.body.pipeThrough(new TextDecoderStream())) {
    const events = (text + bytes).split("\n\n");
    text = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ") || event === "data: [DONE]") continue; // a comment, or the end
      const { choices, error } = JSON.parse(event.slice("data: ".length));
      if (error) throw new Error(error.message);
      yield choices[0]?.delta.content ?? "";
    }
  }
}

if (globalThis.process?.argv[2]) {
  const [model, weights, url = "http://127.0.0.1:8080/v1"] = process.argv.slice(2);
  for await (const piece of streamReply(url, model, "How was your day?", JSON.parse(weights))) process.stdout.write(piece);
  process.stdout.write("\n");
}
