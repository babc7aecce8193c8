"""Models from elsewhere, made MiniGPT folders."""
