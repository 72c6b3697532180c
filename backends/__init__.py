"""Everything that touches weights, tensors or model files: workers, sampler, tokenizers, model discovery."""
