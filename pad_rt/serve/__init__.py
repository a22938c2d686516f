"""An HTTP server of personalized replies: OpenAI's API over a `Generator`."""
