"""vizrobust: what adversarial training does to an image classifier, in numbers and pictures."""
