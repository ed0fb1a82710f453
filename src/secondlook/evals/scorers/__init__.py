"""Scorers that several benchmarks share, and the models that they are published with."""

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
"""GenEval's, in transformers' own format."""
CLIP = "openai/clip-vit-large-patch14"
"""GenEval's and PIE-Bench's."""
CLIP_SCORE = "openai/clip-vit-base-patch32"
"""Of T2I-CompBench's released code (CLIPScore_eval); cosines of other CLIPs are not comparable with
published ones."""
BLIP = "Salesforce/blip-vqa-capfilt-large"
"""T2I-CompBench's."""
DINO = "facebook/dino-vitb8"
"""PIE-Bench's."""
