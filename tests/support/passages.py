"""Sentences to fit small key statistics on."""

PASSAGES = [
    f"{who} {what}"
    for what in (
        "lived in the old house by the river in Paris.",
        "wrote a letter.",
        "spoke of the war, and of the sea.",
    )
    for who in ("She", "He", "The teacher", "The old people", "They", "I", "You", "The king", "A woman", "The man")
]
