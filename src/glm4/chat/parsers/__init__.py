"""From the text of an answer to events, as it arrives."""
