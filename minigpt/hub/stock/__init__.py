"""Stock architectures of transformers and ours, each made of the other."""
