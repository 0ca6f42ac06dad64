"""Small operations of transformers that other projects import from here: plain PyTorch, on any device."""
