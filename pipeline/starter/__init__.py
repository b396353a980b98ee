"""The starter's training: its corpus (`corpus`), the model (`pretrain`) and a check of how good it is (`measure`).

Only `scripts/make_starter.py` imports the last two, which need torch. `docs/starter.md` describes the whole.
"""
