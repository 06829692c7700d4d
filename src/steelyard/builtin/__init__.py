"""The embedded default: procedural tasks with verifiable answers, a tokenizer and a ladder of tiny models.

Nothing is imported here: the tasks need no torch, the tokenizer and the ladder load it when called.
"""
