"""The routes below ``/v1``, compatible with OpenAI's clients."""
