"""The engine on vLLM: its worker's weights, its scheduler, its sampler, and the update beside the layers."""
