"""The starter: generated problems and a small model that can write programs for them, so that everything runs offline.

`generator` makes the problems, `authors` and `corpus` the programs of mixed quality that the model is pretrained on,
`pretrain` the model itself, `evaluate` measures it (both need torch; only `scripts/make_starter.py` imports them).
`docs/starter.md` describes the whole.
"""
