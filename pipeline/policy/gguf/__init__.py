"""Models in GGUF files: what a file says (`header`), which of them can be trained (`architecture`), its tokenizer
(`tokenizer`), and the folder for transformers that is made of it (`convert`)."""
