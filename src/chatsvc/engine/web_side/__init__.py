"""The web process's side of the engine: a client of its socket."""
