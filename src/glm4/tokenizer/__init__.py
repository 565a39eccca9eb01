"""Text to token ids and back. Knows vocabularies and special tokens by name, but not models or chat formats."""

from __future__ import annotations

from glm4.tokenizer.base import AddedToken, Tokenizer
from glm4.tokenizer.detokenizer import Detokenizer
from glm4.tokenizer.loading import load_tokenizer

__all__ = ["AddedToken", "Detokenizer", "Tokenizer", "load_tokenizer"]
