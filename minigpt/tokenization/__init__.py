"""Text to ids and back."""

from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer, UnknownCharacterError

__all__ = ["MiniGPTTokenizer", "UnknownCharacterError"]
