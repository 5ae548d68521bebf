"""The files that weights come in: GGUF and safetensors, and what they say of the model."""
