"""The conversation: messages to prompt, token ids to text, stops. Knows nothing about HTTP or about a runner."""
