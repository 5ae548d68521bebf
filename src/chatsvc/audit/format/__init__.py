"""The log's format: records, tree, notes, rules. Pure, but for reading files (``replay``, ``layout``)."""
