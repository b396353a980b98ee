"""The engine on vLLM: its worker's weights, its scheduler, and the update beside the layers."""
