"""What a model is: configurations, models, and the textbook version that says what they compute."""
