"""Words of questions and class names: plural forms, and the words that a model's training questions had."""
