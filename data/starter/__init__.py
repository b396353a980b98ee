"""The starter: generated problems and a small model that can write programs for them, so that everything runs offline.

`generator` makes the problems, `authors` the programs of mixed quality; `pipeline/starter/` trains the model on them.
`docs/starter.md` describes the whole.
"""
