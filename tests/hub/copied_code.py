"""The code files that a repository of a MiniGPT holds."""

CODE = {
    "configuration_minigpt.py",
    "fast_generation_minigpt.py",
    "generation_minigpt.py",
    "modeling_minigpt.py",
    "padding_minigpt.py",
}
