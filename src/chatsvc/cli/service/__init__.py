"""Commands that run, install and talk to the service: serve, engine, quickstart, chat, bundle."""
