"""A model's text side: tokenizer, markers, chat template."""
