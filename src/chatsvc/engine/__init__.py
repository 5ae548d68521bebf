"""The engine: a process that turns token ids into token ids, and the web side's client for it. Knows no text."""
