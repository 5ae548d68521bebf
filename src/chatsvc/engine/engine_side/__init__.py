"""The engine process's side: its loop and its connections."""
