"""OpenAI's API without HTTP: what a body asks for, and what a reply says."""
