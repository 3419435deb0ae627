"""Small language models with one table of tokens for input and output, and text that is on every machine."""

from otdml.language.model import TiedLanguageModel, Training, training
from otdml.language.text import Corpus, corpus, docstrings, manual, tokens

__all__ = ["Corpus", "TiedLanguageModel", "Training", "corpus", "docstrings", "manual", "tokens", "training"]
