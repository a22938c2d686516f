"""Files of requests, answered in OpenAI's batch format."""
